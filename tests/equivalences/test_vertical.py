"""Vertical split learning: one party as vanilla, several as the joined model, to the bit; and missing parties."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from fsl.simulations.fsl_simulate import command
from fsl.strategies import PSL, DecoupledSL, FedAvg, SplitFedV1, VanillaSL, Vertical
from sklearn.metrics import roc_auc_score
from torch import nn

import fsl
from fsl.codecs import Float16
from fsl.data import TensorExamples, VerticalData
from fsl.data.vertical_data import of_parties_alone
from fsl.errors import ConfigError, LostError, UntrainedError
from fsl.models import Attention, VerticalModel
from fsl.privacy import DPSGD, Privacy
from fsl.round.edge_server import EdgeServer
from fsl.round.party_device import PartyDevice
from fsl.settings.optimizer_settings import Optimizer
from tests.helpers.parties import model, run, tables
from tests.helpers.runs import ADAM, KEPT, MOMENTUM, assert_same_bits, assert_same_run

pytestmark = pytest.mark.slow
FUSIONS = ["concatenation", "sum", "mean", "max", "product", Attention(6)]
fusions = pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: f if isinstance(f, str) else type(f).__name__)


@pytest.mark.parametrize("fusion", ["concatenation", "sum"])
@pytest.mark.parametrize("optimizer", [MOMENTUM, KEPT], ids=["momentum", "adam-kept"])
def test_one_party_equals_vanilla_split_learning(fusion, optimizer):
    """Weights, losses and bytes; random layers behind the cut draw alike, those before it by the party's name."""
    mine = model(fusion, parties=("bank",), norm=True, dropout=0.3)
    data = tables("bank", parties=("bank",))
    task = data.task().shuffled(0)
    joined = TensorExamples(task.train.inputs["bank"], task.train.targets)
    sequential = nn.Sequential(mine.fronts["bank"], mine.back)
    one = run(Vertical(), mine, data, optimizer=optimizer)
    other = fsl.simulate(
        sequential, joined, strategy=VanillaSL(), cut="0", devices=1, rounds=2, batch_size=16, optimizer=optimizer
    )
    names = {"fronts.bank.": "0.", "back.": "1."}
    renamed = {
        next(new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)): tensor
        for key, tensor in one.model.state_dict().items()
    }
    assert_same_bits(renamed, other.model.state_dict())
    for a, b in zip(one.metrics, other.metrics, strict=True):
        for key in ("train_loss", "examples", "up_bytes", "down_bytes", "devices"):
            assert a[key] == b[key], key


@fusions
def test_several_parties_equal_the_joined_model_trained_unsplit(fusion):
    """Dropout and batch normalisation included: random layers draw by segment, and the control has the same ones."""
    assert_joined(model(fusion, norm=True, dropout=0.3), ADAM)


@pytest.mark.parametrize("optimizer", [MOMENTUM, KEPT], ids=["momentum", "adam-kept"])
def test_so_they_do_with_every_optimizer(optimizer):
    assert_joined(model(parties=("bank", "shop", "clinic"), norm=True, dropout=0.3), optimizer)


def assert_joined(which, optimizer):
    data, test = tables(parties=which.parties).divided(0.25)
    options = {"test_data": test, "optimizer": optimizer}
    one, other = run(Vertical(), which, data, **options), run(FedAvg(), which, data, devices=1, **options)
    assert_same_bits(one.model.state_dict(), other.model.state_dict())
    for a, b in zip(one.metrics, other.metrics, strict=True):
        for key in ("train_loss", "loss", "accuracy", "examples"):
            assert a[key] == b[key], key


def test_nodes_elsewhere_compute_the_same(elsewhere):
    options = {"which": model(dropout=0.3), "strategy": Vertical(absent=0.3)}
    assert_same_run(run(**options), run(**options, backend=elsewhere, nodes=2))


def test_stopped_and_resumed_equals_never_stopped(tmp_path):
    options = {"strategy": Vertical(absent={"shop": [1]}, absent_per="round"), "optimizer": KEPT}
    whole = run(rounds=3, **options)
    run(rounds=1, out=tmp_path / "run", **options)
    assert_same_run(whole, run(rounds=3, out=tmp_path / "run", resume=True, **options))


def test_the_order_of_a_partys_rows_changes_nothing():
    data = tables()
    turned = np.random.default_rng(1).permutation(60).tolist()
    mixed = VerticalData({**data.parties, "shop": tables(order=turned).parties["shop"]}, data.labels)
    assert_same_run(run(Vertical(), data=data), run(Vertical(), data=mixed))


# Labels.


def sent(monkeypatch):
    seen = []
    receive = EdgeServer.receive
    monkeypatch.setattr(EdgeServer, "receive", lambda self, packet: seen.append(packet) or receive(self, packet))
    return seen


def test_labels_travel_from_the_party_that_has_them_alone(monkeypatch):
    seen = sent(monkeypatch)
    for holder, expected in (("edge", set()), ("shop", {1})):
        seen.clear()
        run(Vertical(), data=tables(holder), rounds=1)
        assert {packet.device for packet in seen} == {0, 1}
        assert {packet.device for packet in seen if packet.targets is not None} == expected


def test_who_has_the_labels_changes_no_weight():
    one, two = (run(Vertical(), data=tables(holder)) for holder in ("edge", "bank"))
    assert_same_bits(one.model.state_dict(), two.model.state_dict())
    assert one.metrics[-1]["train_loss"] == two.metrics[-1]["train_loss"]
    assert one.metrics[-1]["up_bytes"] < two.metrics[-1]["up_bytes"]


def test_labels_stay_at_a_party_with_a_tail(monkeypatch):
    """Vertical and U-shaped: the tail runs, and steps, where the labels are; the model is the same to the bit."""
    seen = sent(monkeypatch)
    options = {"data": tables("shop"), "optimizer": KEPT}
    without, tailed = (run(Vertical(), model(tail=tail), **options) for tail in (False, True))
    seen_of_tailed = seen[len(seen) // 2 :]
    assert all(packet.targets is None for packet in seen_of_tailed)
    found = {key.replace("tail.", "back.3."): value for key, value in tailed.model.state_dict().items()}
    assert_same_bits(without.model.state_dict(), found)
    assert without.metrics[-1]["train_loss"] == tailed.metrics[-1]["train_loss"]


def test_with_a_tail_they_equal_the_joined_model_too():
    one, other = (
        run(strategy, model(tail=True, dropout=0.3), tables("shop"), optimizer=KEPT, **more)
        for strategy, more in ((Vertical(), {}), (FedAvg(), {"devices": 1}))
    )
    assert_same_bits(one.model.state_dict(), other.model.state_dict())


def test_a_party_without_labels_is_given_none(monkeypatch):
    targets = {}
    forward = PartyDevice.upload
    monkeypatch.setattr(
        PartyDevice,
        "upload",
        lambda self, smashed, given: targets.setdefault(self.device, given) is None or forward(self, smashed, given),
    )
    run(Vertical(), data=tables("shop"), rounds=1)
    assert not targets[0].any()
    assert targets[1].any()


# Missing parties.


@pytest.mark.parametrize("fusion", ["sum", "mean", "max", "product", Attention(6)], ids=str)
def test_without_a_party_the_rest_train_as_if_it_did_not_exist(fusion):
    """Zeros in a sum, ones in a product, nothing in an average, a maximum and attention."""
    whole, alone = model(fusion), model(fusion, parties=("bank",))
    alone.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("fronts.shop.")})
    data = tables()
    only = VerticalData({"bank": data.parties["bank"]}, data.labels)
    one, other = run(Vertical(absent={"shop": 1.0}), whole, data), run(Vertical(), alone, only)
    found = one.model.state_dict()
    assert_same_bits({k: v for k, v in found.items() if k in other.model.state_dict()}, other.model.state_dict())
    untouched = {k: v for k, v in whole.state_dict().items() if k.startswith("fronts.shop.")}
    assert_same_bits(untouched, {k: found[k] for k in untouched})


def test_a_missing_party_counts_as_zeros_in_a_concatenation():
    one = run(Vertical(absent={"shop": 1.0}))
    weight = one.model.state_dict()["back.1.weight"]
    assert torch.equal(weight[:, 6:], model().state_dict()["back.1.weight"][:, 6:])  # behind zeros nothing is learnt
    assert not torch.equal(weight[:, :6], model().state_dict()["back.1.weight"][:, :6])


def test_absences_are_counted_and_do_not_depend_on_who_else_is_there():
    rows = run(Vertical(absent={"shop": 0.5, "bank": [0, 2]})).metrics
    assert all(row["absent_bank"] == 2 for row in rows)
    assert all(row["absent_steps"] == row["absent_bank"] + row["absent_shop"] for row in rows)
    assert any(0 < row["absent_shop"] < 4 for row in rows)  # drawn for each step
    assert [row["absent_shop"] for row in run(Vertical(absent={"shop": 0.5})).metrics] == [
        r["absent_shop"] for r in rows
    ]


def test_a_step_without_anybody_is_skipped_and_said():
    row = run(Vertical(absent={"shop": [1], "bank": [1]}), rounds=1).metrics[0]
    assert (row["skipped_steps"], row["absent_steps"], row["examples"]) == (1, 2, 44)


def test_a_party_absent_for_a_round_keeps_its_front():
    found = run(Vertical(absent={"shop": [1]}, absent_per="round"))
    first, second = found.metrics
    assert (first["devices"], first["absent_shop"], second["absent_shop"]) == (1, 4, 0)
    never = run(Vertical(absent={"shop": [1, 2]}, absent_per="round"))
    assert_same_bits(
        {k: v for k, v in never.model.state_dict().items() if "shop" in k},
        {k: v for k, v in model().state_dict().items() if "shop" in k},
    )


def test_somebody_is_always_there_for_a_round():
    rows = run(Vertical(absent=0.9, absent_per="round"), rounds=6).metrics
    assert {row["devices"] for row in rows} == {1}


def test_one_probability_leaves_the_party_with_the_labels_there():
    rows = run(Vertical(absent=0.9), data=tables("shop")).metrics
    assert all(row["absent_shop"] == 0 and row["absent_bank"] > 0 for row in rows)


def test_subsets_are_scored_on_demand():
    data, test = tables().divided(0.3)
    row = run(Vertical(evaluate_subsets="each"), data=data, test_data=test, rounds=1).metrics[0]
    assert {"accuracy_without_bank", "loss_without_shop"} <= row.keys()
    found = run(Vertical(evaluate_subsets=[["shop"]]), data=data, test_data=test, rounds=1)
    assert found.metrics[0]["loss_only_shop"] == row["loss_without_bank"]
    task = data.task(test)
    outputs = found.model.eval()({"shop": task.test.inputs["shop"]})
    loss = float(nn.functional.cross_entropy(outputs, task.test.targets))
    assert row["loss_without_bank"] == pytest.approx(loss, rel=1e-6)


def test_a_party_whose_work_is_unusable_is_lost_and_the_others_go_on(monkeypatch):
    forward = PartyDevice.forward

    def fails(self):
        if (self.device, self.step) == (1, 2):
            raise LostError(1, "its smashed data are not finite")
        return forward(self)

    monkeypatch.setattr(PartyDevice, "forward", fails)
    row = run(Vertical(), rounds=1).metrics[0]
    assert (row["devices"], set(row["lost"]), row["absent_shop"]) == (1, {"1"}, 2)
    with pytest.raises(UntrainedError, match="nobody is left who has the labels"):
        run(Vertical(), data=tables("shop"), rounds=1)


def test_codecs_act_on_every_partys_cut():
    whole, half = (
        run(Vertical(), rounds=1, **options).metrics[0] for options in ({}, {"up": Float16, "down": Float16})
    )
    assert half["up_bytes"] < whole["up_bytes"]
    assert half["down_bytes"] < whole["down_bytes"]


# Refusals.


@pytest.mark.parametrize(
    ("strategy", "options", "line"),
    [
        (SplitFedV1(), {"devices": 2}, "SplitFedV1: it trains one front and one back"),
        (PSL(), {"devices": 2}, "use strategy=vertical"),
        (DecoupledSL(), {"devices": 2}, "DecoupledSL: it trains one front and one back"),
        (FedAvg(), {"devices": 1, "privacy": Privacy(dp_sgd=DPSGD(noise_multiplier=1.0))}, "no account of it is built"),
        (Vertical(), {"evaluate_leakage": 8}, "evaluate_leakage"),
        (Vertical(), {"evaluate_devices": 1}, "evaluate_devices"),
        (Vertical(), {"devices": 3}, r"the data are of 2 parties \(bank, shop\)"),
        (Vertical(), {"edges": 2}, "edges: strategy=vertical does not take it"),
        (Vertical(), {"devices_per_round": 1}, "devices_per_round: strategy=vertical does not take it"),
        (Vertical(), {"samples_per_device": 8}, "samples_per_device: strategy=vertical does not take it"),
        (Vertical(), {"partition": fsl.data.Dirichlet(alpha=1.0)}, "divides features, not rows"),
        (Vertical(), {"privacy": Privacy(dp_sgd=DPSGD(noise_multiplier=1.0))}, "no account of it is built"),
        (Vertical(), {"cut": "fronts.bank"}, "leave the cut out"),
        (Vertical(), {"cuts": lambda profile: "fronts.bank"}, "leave cuts out"),
        (Vertical(), {"accumulate": 2}, "accumulate=2: a step of Vertical"),
        (Vertical(), {"mobility": "random", "edges": 2}, "edges: strategy=vertical"),
        (Vertical(), {"aggregator": "fedadam"}, "averages nothing over devices"),
        (Vertical(absent={"hotel": 0.1}), {}, "there is no party 'hotel'; there are bank, shop"),
        (Vertical(absent={"bank": 0.1}), {"data": tables("bank")}, "'bank' has the labels"),
        (Vertical(evaluate_subsets=[["bank", "hotel"]]), {}, "evaluate_subsets: there is no party 'hotel'"),
        (Vertical(), {"data": tables(parties=("bank", "hotel"))}, "the model's parties are bank, shop"),
        (Vertical(), {"which": model(tail=True)}, "the model has a tail"),
        (Vertical(), {"which": model(Attention(5))}, "the parties send 6 values"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_built_is_refused(strategy, options, line):
    with pytest.raises(ConfigError, match=line):
        run(strategy, **options)


def test_models_and_data_without_parties_are_refused():
    task = tables().task()
    flat = TensorExamples(task.train.inputs["bank"], task.train.targets)
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"give an fsl\.models\.VerticalModel"):
        fsl.simulate(plain, (flat.inputs, flat.targets), strategy="vertical", cut="0", progress=False)
    joined = fsl.data.from_columns(task.train.inputs, task.train.targets)
    with pytest.raises(ConfigError, match=r"give an fsl\.data\.VerticalData"):
        fsl.simulate(model(), joined, strategy="vertical", progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {"absent": 1.0},
        {"absent": -0.1},
        {"absent": {"shop": 1.5}},
        {"absent": [1, 2]},
        {"absent": {"shop": ["1"]}},
        {"absent": {"shop": [0]}, "absent_per": "round"},
        {"absent_per": "epoch"},
        {"evaluate_subsets": "some"},
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match=r"absent|evaluate_subsets"):
        Vertical(**options)


def test_clipping_and_precision_are_those_of_the_joined_model():
    clipped = Optimizer("torch.optim.SGD", lr=0.05, clip_norm=0.05)
    for options in ({"optimizer": clipped}, {"precision": "bfloat16"}):
        one, other = run(Vertical(), rounds=1, **options), run(FedAvg(), rounds=1, devices=1, **options)
        assert_same_bits(one.model.state_dict(), other.model.state_dict())


def test_saving_and_exporting_are_refused(tmp_path):
    found = run(Vertical(), rounds=1)
    for write in (found.save_pretrained, found.export):
        with pytest.raises(ConfigError, match="saving or exporting them is not built"):
            write(tmp_path / "model")


def test_price_refuses_parties():
    with pytest.raises(ConfigError, match="VerticalModel"):
        fsl.price(model(), tables().task(), strategy="vertical")


# From the command line.


def test_the_command_trains_parties_of_files_and_of_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    people = [(f"p{k}", k % 7, (3 * k) % 5) for k in range(40)]
    (tmp_path / "bank.csv").write_text("id,age,label\n" + "".join(f"{i},{a},{a > 3}\n" for i, a, _ in people))
    (tmp_path / "shop.csv").write_text("visits,id\n" + "".join(f"{v},{i}\n" for i, _, v in reversed(people)))
    paths = f"data.paths={{bank: {tmp_path / 'bank.csv'}, shop: {tmp_path / 'shop.csv'}}}"
    options = ["experiment=vertical", "rounds=1", "backend.threads=1"]
    own = ["data=vertical", paths, "data.labels_at=bank", "model.fusion=attention", "strategy.absent={shop: 0.5}"]
    assert command([*options, *own, f"hydra.run.dir={tmp_path / 'one'}"]) == 0
    row = json.loads((tmp_path / "one" / "metrics.jsonl").read_text())
    assert (row["devices"], row["examples"]) == (2, 30)
    assert command([*options, "devices=3", f"hydra.run.dir={tmp_path / 'two'}"]) == 2
    assert "the data are of 2 parties (imaging, laboratory)" in capsys.readouterr().err


# A real table.


def test_two_parties_know_more_than_one_and_as_much_as_the_joined_table():
    """Breast cancer over two parties: areas under the ROC curve on people held out; docs/vertical.md has more seeds."""
    task, found = fsl.data.breast_cancer(), {}
    for name in ("both", "joined", *task.parties):
        parties = task.parties if name in ("both", "joined") else (name,)
        train, test = (of_parties_alone(examples, parties) for examples in (task.train, task.test))
        part = replace(task, parties=parties, train=train, test=test)
        torch.manual_seed(0)
        which = fsl.models.VerticalMLP(part.party_shapes, 2)
        strategy, devices = (FedAvg(), 1) if name == "joined" else (Vertical(), len(parties))
        done = run(strategy, which, part, devices=devices, rounds=5, batch_size=32, optimizer=MOMENTUM)
        with torch.no_grad():
            scores = done.model.eval()(test.inputs).softmax(dim=1)[:, 1]
        found[name] = roc_auc_score(test.targets, scores)
    assert found["both"] == found["joined"]
    assert found["both"] > max(found["imaging"], found["laboratory"])
    assert found["both"] > 0.98


def test_a_model_is_a_module_like_any_other():
    which = model()
    assert isinstance(which, VerticalModel)
    assert which({"bank": torch.randn(3, 4), "shop": torch.randn(3, 7)}).shape == (3, 2)
