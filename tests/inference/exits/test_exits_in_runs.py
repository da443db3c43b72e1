"""Early exits that learn in a run, on both sides of the cut, and those that a run trains behind itself."""

import contextlib
import copy
import pickle

import pytest
import torch
from fsl.strategies import PSL, CycleSL, DecoupledSL, FedAvg, SplitFedV1, SplitFedV2, SplitFedV3
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

import fsl
from fsl.costs import stage_costs
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.setup import build_workload
from fsl.errors import ConfigError, RunError
from fsl.inference.exits import Distillation, ExitModel, MLPExit, collect_outputs, load_exits, train_exits, with_exits
from fsl.inference.exits.exit_choice import heads_of, weights_of
from fsl.inference.exits.leaving import rows_for_heads
from fsl.segments.labelled_parts import labelled_parts, loss_by, told
from fsl.split.exit_tap import exit_taps
from tests.helpers.node_setups import setup_of
from tests.helpers.runs import ADAM, KillAfter, KilledError, assert_same_bits, assert_same_run, run
from tests.helpers.small import small_model, small_task
from tests.helpers.wired import Wired

HEADS = {"conv": MLPExit(width=8), "conv2": "linear"}  # in the front of the cut at pool, and behind it
TASK = small_task()


class PooledAverage(PSL):
    """PSL with one front for all."""

    fronts = "averaged"


def adapted():
    """It takes seconds to import what makes it, so only its test does."""
    return fsl.lora(small_model(), targets=["head.1"])


def tapped(**options):
    return with_exits(small_model(), HEADS, TASK.train.blank(3), **options)


def heads(run):
    return {key: tensor for state in run.states.values() for key, tensor in state.items() if "exit_head" in key}


def test_a_step_goes_down_the_weighted_sum_of_all_losses():
    weights, rate = {"conv": 0.5, "conv2": 2.0}, 0.1
    done = run(
        SplitFedV1(), exits=fsl.Exits(HEADS, weights=weights), devices=1, rounds=1, batch_size=len(TASK.train),
        optimizer=fsl.Optimizer("torch.optim.SGD", rate),
    )  # fmt: skip
    model = ExitModel(small_model(), HEADS, TASK.train.blank(3)).train()
    inputs, targets = TASK.train.batch(torch.arange(len(TASK.train)))
    first, second, last = (cross_entropy(outputs, targets) for outputs in model(inputs))
    (0.5 * first + 2.0 * second + last).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad
    found, wanted = done.model.state_dict(), model.backbone.state_dict()
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.allclose(found[key], tensor, atol=1e-6), key
    found = heads(done)
    for point, head in zip(model.exits, model.heads, strict=True):
        for key, tensor in head.state_dict().items():
            assert torch.allclose(found[f"{point}.exit_head.{key}"], tensor, atol=1e-6), key


def test_exits_without_weight_leave_the_run_as_it_is_without_them():
    plain = run(SplitFedV1(), optimizer=ADAM)
    done = run(SplitFedV1(), exits=fsl.Exits(HEADS, weights=dict.fromkeys(HEADS, 0.0)), optimizer=ADAM)
    assert_same_bits(plain.model.state_dict(), done.model.state_dict())


@pytest.mark.parametrize("one", [SplitFedV1(), SplitFedV2(order="round")], ids=["v1", "v2 of one device"])
def test_split_training_of_exits_is_that_of_the_whole_model(one):
    devices = 3 if isinstance(one, SplitFedV1) else 1
    (split, whole) = (run(which, exits=HEADS, devices=devices) for which in (one, FedAvg()))
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())
    assert_same_bits(heads(split), heads(whole))


def test_of_one_device_every_trainer_gives_exits_the_same_gradient():
    found = [run(strategy, exits=HEADS, devices=1) for strategy in (SplitFedV1(), PooledAverage())]
    assert_same_bits(heads(found[0]), heads(found[1]))
    assert_same_bits(found[0].model.state_dict(), found[1].model.state_dict())


def test_a_pool_s_exits_learn_from_each_device_by_its_share():
    done = run(
        PooledAverage(),
        exits=HEADS,
        devices=2,
        rounds=1,
        batch_size=48,
        optimizer=fsl.Optimizer("torch.optim.SGD", 0.1),
    )  # one step, of all rows
    model = ExitModel(small_model(), HEADS, TASK.train.blank(3)).train()
    inputs, targets = TASK.train.batch(torch.arange(len(TASK.train)))
    sum(cross_entropy(outputs, targets) for outputs in model(inputs)).backward()
    head = model.heads[1][1]
    assert torch.allclose(heads(done)["conv2.exit_head.1.weight"], head.weight - 0.1 * head.weight.grad, atol=1e-6)


@pytest.mark.parametrize("strategy", [CycleSL(), DecoupledSL()], ids=["cyclesl", "decoupled"])
def test_other_algorithms_train_exits_too(strategy):
    done, before = run(strategy, exits=HEADS), tapped().state_dict()
    assert all(not torch.equal(tensor, before[key]) for key, tensor in heads(done).items())


def test_rounds_tell_what_exits_would_score(tmp_path):
    done = run(SplitFedV1(), exits=HEADS, out=tmp_path / "run")
    saved = load_exits(tmp_path / "run", backbone=small_model())
    outputs = collect_outputs(saved.model, TASK.test)
    told_of = done.metrics[-1]
    assert [told_of[f"accuracy_at_{p}"] for p in ("conv", "conv2")] == pytest.approx(list(outputs.means()[:2]))
    assert told_of["accuracy"] == pytest.approx(float(outputs.means()[2]))
    assert saved.thresholds is not None
    final = done.folder.read_summary()["final"]
    assert final["accuracy_at_conv"] == told_of["accuracy_at_conv"]


def test_a_run_s_model_is_that_of_a_program_without_exits(tmp_path):
    done = run(SplitFedV1(), exits=HEADS, out=tmp_path / "run")
    assert load_file(tmp_path / "run/model.safetensors").keys() == small_model().state_dict().keys()
    assert not exit_taps(done.model)
    done.save_pretrained(tmp_path / "pretrained")
    loaded = fsl.load_pretrained(tmp_path / "pretrained", model=small_model())
    assert_same_bits(loaded.state_dict(), done.model.state_dict())


def test_a_run_with_exits_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole = run(SplitFedV1(), exits=HEADS, rounds=3, optimizer=ADAM, out=tmp_path / "whole")
    with pytest.raises(KilledError):
        run(SplitFedV1(), exits=HEADS, rounds=3, optimizer=ADAM, out=tmp_path / "cut", observers=[KillAfter(1)])
    resumed = run(SplitFedV1(), exits=HEADS, rounds=3, optimizer=ADAM, out=tmp_path / "cut", resume=True)
    assert_same_run(whole, resumed)
    with pytest.raises(ConfigError, match="exits"):
        run(SplitFedV1(), exits={"conv": "linear"}, rounds=4, optimizer=ADAM, out=tmp_path / "cut", resume=True)


def test_a_run_with_exits_starts_from_weights_of_a_model_without(tmp_path):
    run(SplitFedV1(), out=tmp_path / "plain")
    done = run(SplitFedV1(), exits=HEADS, init_from=tmp_path / "plain/model.safetensors", rounds=1)
    again = run(SplitFedV1(), init_from=tmp_path / "plain/model.safetensors", rounds=1)
    assert done.metrics[-1]["up_bytes"] == again.metrics[-1]["up_bytes"]  # labels stay where they are, and heads too
    assert done.metrics[-1]["sim_seconds"] > again.metrics[-1]["sim_seconds"]


@pytest.mark.slow
def test_exits_learn_over_grpc_as_in_one_process(tmp_path):
    options = {"devices": 4, "edges": 2, "optimizer": ADAM, "exits": HEADS}
    simulated = run(SplitFedV1(), **options)
    wired = run(SplitFedV1(), backend=Wired(folder=tmp_path), **options)
    assert_same_bits(heads(simulated), heads(wired))
    assert_same_bits(simulated.model.state_dict(), wired.model.state_dict())


def test_a_node_builds_the_exits_of_the_cloud(tmp_path):
    setup = setup_of("exits={pool1: conv, conv2: 'mlp:8'}", "exit_training.weights.pool1=0.5", "seed=3")
    workload = build_workload(setup, NodeSettings.read({"state": str(tmp_path)}))
    own = with_exits(
        fsl.models.LeNet((1, 8, 8), 10), {"pool1": "conv", "conv2": MLPExit(width=8)}, workload.data.blank(3), seed=3
    )
    taps = {one.exit.point: one for one in exit_taps(workload.model)}
    assert {point: one.exit.weight for point, one in taps.items()} == {"pool1": 0.5, "conv2": 1.0}
    for one in exit_taps(own):
        assert_same_bits(one.head.state_dict(), taps[one.exit.point].head.state_dict())


def test_a_model_with_exits_is_itself_outside_of_training():
    model, rows = tapped(), TASK.test.batch(torch.arange(5))[0]
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(one(rows), small_model()(rows))
    assert model.state_dict().keys() > small_model().state_dict().keys()


def test_what_comes_behind_an_exit_may_work_in_place():
    model = with_exits(small_model(), {"pool": "linear"}, TASK.train.blank(3))  # an in-place ReLU follows
    inputs, targets = TASK.train.batch(torch.arange(8))
    with told(labelled_parts(model), loss_by(fsl.objective.CrossEntropy(), targets)):
        model(inputs).sum().backward()
    assert exit_taps(model)[0].head[1].weight.grad is not None


@pytest.mark.parametrize("told_by", [None, Distillation(0.5)], ids=["labels", "distillation"])
def test_heads_trained_behind_a_run_leave_it_as_it_is(told_by, tmp_path):
    exits = fsl.Exits(HEADS, how="frozen", distillation=told_by, epochs=2)
    plain, done = run(SplitFedV1()), run(SplitFedV1(), exits=exits, out=tmp_path / "run")
    assert_same_run(plain, done)
    saved = load_exits(tmp_path / "run", backbone=small_model()).model
    assert_same_bits(saved.backbone.state_dict(), done.model.state_dict())
    own = ExitModel(copy.deepcopy(done.model).eval(), HEADS, TASK.train.blank(3))
    seen, _ = rows_for_heads(TASK, 0)
    train_exits(own, seen, distillation=told_by, epochs=2)
    assert_same_bits(own.heads.state_dict(), saved.heads.state_dict())


def test_a_trainer_that_tells_no_labels_is_told_so():
    class Silent(fsl.trainers.Replicated):
        def step(self, messages):
            for upload in messages:
                self._replicas[upload.device].learner.forward(upload.smashed, 0)

    class Untold(SplitFedV1):
        def trainer(self, round):
            return fsl.Spec(Silent)

    with pytest.raises(RunError, match="loss_of"):
        run(Untold(), exits=HEADS)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 4)

    def forward(self, inputs):
        return self.out(self.conv(self.conv(inputs)).flatten(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exits": {"conv3": "linear"}}, "^exits.conv3 cannot be made: the model has no module"),
        ({"exits": {"conv": "cnn"}}, "exit head 'cnn'"),
        ({"exits": "conv"}, "give heads by points"),
        ({"exits": HEADS, "strategy": SplitFedV3()}, "front of its own"),
        ({"exits": HEADS, "cut": ["conv", "conv2"]}, "could not learn"),
        ({"exits": {"conv": "linear"}, "cut": "conv.0"}, "'conv' holds the cut 'conv.0'"),
        ({"exits": HEADS, "cuts": {0: "pool", 1: "conv"}, "cut": None}, "with cuts"),
        ({"exits": HEADS, "privacy": "dp_sgd"}, "with privacy"),
        ({"exits": HEADS, "up": fsl.codecs.Bottleneck(channels=2)}, "trained codec"),
        ({"exits": {"conv": "linear"}, "model": Twice(), "cut": "conv"}, "passes 'conv' 2 times|cannot be had"),
        ({"exits": HEADS, "model": adapted}, "with lora"),
        ({"exits": HEADS, "objective": "bce"}, "exits of runs are of classes"),
    ],
)
def test_what_is_not_built_is_refused_before_anything_is_written(options, words, tmp_path):
    options = {"strategy": SplitFedV1()} | options
    if callable(build := options.get("model")) and not isinstance(build, nn.Module):
        options["model"] = build()
    with pytest.raises(ConfigError, match=words):
        run(**options, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"heads": {}}, "give heads by points"),
        ({"how": "jointly"}, "joint, classifier_wise, frozen"),
        ({"weights": {"pool": 1.0}}, "there is no exit"),
        ({"weights": {"conv": -1.0}}, "at least 0"),
        ({"how": "frozen", "weights": {"conv": 1.0}}, "use how='joint'"),
        ({"epochs": 3}, "how='frozen'"),
        ({"how": "frozen", "epochs": 0}, "at least 1"),
        ({"how": "frozen", "learning_rate": 0.0}, "above 0"),
        ({"how": "classifier_wise", "distillation": Distillation()}, "goes by labels"),
        ({"confidence": "margin"}, "max_softmax"),
        ({"confidence": "none"}, "max_softmax, entropy"),
        ({"within": 2.0}, "from 0 to 1"),
        ({"heads": {"conv": "fusion"}}, "several activations"),
    ],
)
def test_exits_that_cannot_be_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        fsl.Exits(**({"heads": HEADS} | given))


def test_heads_that_learn_in_a_run_count_as_work_of_their_side():
    objective = fsl.objective.CrossEntropy()
    plain, more = (stage_costs(m, TASK.train, objective, ["pool"]) for m in (small_model(), tapped()))
    own = [2 * macs for macs in tapped_macs()]
    assert [b.forward_flops - a.forward_flops for a, b in zip(plain, more, strict=True)] == own
    assert all(b.backward_flops > a.backward_flops for a, b in zip(plain, more, strict=True))


def tapped_macs():
    return ExitModel(small_model(), HEADS, TASK.train.blank(3)).costs.heads


class OwnHead(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(4 * 64, 4))


@pytest.mark.parametrize("how", ["frozen", "joint"])
def test_a_head_of_the_user_s_stays_as_it_is(how, tmp_path):
    head = OwnHead()
    before = copy.deepcopy(head.state_dict())
    for name in ("one", "two"):
        run(SplitFedV1(), exits=fsl.Exits({"conv": head}, how=how), rounds=1, out=tmp_path / name)
        assert_same_bits(head.state_dict(), before)
        assert head.training
    one, two = (load_file(tmp_path / name / "exits/heads.safetensors") for name in ("one", "two"))
    assert_same_bits(one, two)


def test_a_run_whose_exits_are_not_written_has_not_finished(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fsl.run.run_exits.train_exits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(SplitFedV1(), exits=fsl.Exits(HEADS, how="frozen"), out=tmp_path / "run")
    assert not (tmp_path / "run/summary.json").exists()


def test_a_run_that_diverged_ends_as_others_do_without_exits(tmp_path, caplog):
    rate = fsl.Optimizer("torch.optim.SGD", 1e38)
    with contextlib.suppress(RunError):
        run(SplitFedV1(), exits=HEADS, rounds=1, optimizer=rate, out=tmp_path / "run")
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize(("metric", "mode"), [("accuracy_at_conv", "max"), ("loss_at_conv2", "min")])
def test_a_run_stops_early_by_what_an_exit_scores(metric, mode):
    assert fsl.EarlyStop(metric=metric, patience=1).with_mode({}).mode == mode
    done = run(SplitFedV1(), exits=HEADS, rounds=4, stop={"metric": metric, "patience": 1, "min_delta": 10.0})
    assert len(done.metrics) == 2


def test_weights_of_points_with_dots_are_read_as_their_heads_are():
    given = {"block1": {"relu": 0.5}, "pool1": 2}
    assert weights_of(given) == {"block1.relu": 0.5, "pool1": 2.0}
    assert heads_of({"block1": {"relu": "linear"}}).keys() == {"block1.relu"}
    with pytest.raises(ConfigError, match=r"exit_training\.weights\.block1\.relu='much'"):
        weights_of({"block1": {"relu": "much"}})
