"""Frozen parameters: they do not travel, and training is what it is on the unsplit model, to the bit."""

import copy
from dataclasses import replace

import pytest
import torch
from flwr.app import ArrayRecord
from fsl.strategies import SGLR, CycleSL, DecoupledSL, FedAvg, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL
from safetensors.torch import load_file, save, save_file

import fsl
from fsl.deployment.cloud.frozen_weights import FrozenWeights
from fsl.deployment.cloud.member import Member
from fsl.deployment.node.networked_node import NetworkedNode
from fsl.errors import RunError, SplitError, WireError
from fsl.flower.frozen_records import take_frozen, with_frozen_arrays
from fsl.flower.records import to_array
from fsl.segments.states import Layout
from tests.helpers.runs import (
    ADAM,
    KEPT,
    STRATEGIES,
    assert_same_bits,
    assert_same_result,
    assert_same_run,
    name_of,
    run,
)
from tests.helpers.small import FROZEN, frozen_model, small_model
from tests.helpers.wired import Wired

U = ("pool", "conv2")
strategies = pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV3(), VanillaSL()], ids=name_of)


def trained_bytes(model, names=None):
    found = [
        t.nbytes for n, t in model.state_dict().items() if n not in FROZEN and (names is None or n.startswith(names))
    ]
    return sum(found)


@pytest.mark.parametrize("cut", ["pool", U], ids=["one cut", "two cuts"])
@pytest.mark.parametrize("optimizer", [ADAM, KEPT], ids=["reset", "kept"])
def test_splitfed_v1_equals_fedavg_and_frozen_weights_stay(cut, optimizer):
    model = frozen_model("batch", 0.3)
    before = copy.deepcopy(model.state_dict())
    options = {"model": model, "devices": 4, "edges": 2, "cut": cut, "optimizer": optimizer}
    one, other = run(SplitFedV1(), **options), run(FedAvg(), **options)
    assert_same_bits(one.model.state_dict(), other.model.state_dict())
    assert one.model.state_dict().keys() == before.keys()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name in FROZEN), name


def test_only_what_trains_counts_as_sent():
    model = frozen_model("batch")
    split, whole = run(SplitFedV1(), model=model), run(FedAvg(), model=model)
    assert split.metrics[0]["model_bytes"] == 3 * 2 * trained_bytes(model, "conv.")
    assert whole.metrics[0]["model_bytes"] == 3 * 2 * trained_bytes(model)


@pytest.mark.parametrize("cut", ["pool", U], ids=["one cut", "two cuts"])
def test_a_front_of_which_everything_is_frozen(cut):
    """No gradient reaches it; what lies behind it learns as on the unsplit model, a tail as well."""
    model = small_model()
    model.conv.requires_grad_(False)
    options = {"model": model, "cut": cut, "optimizer": ADAM}
    one, other = run(SplitFedV1(), **options), run(FedAvg(), **options)
    assert_same_bits(one.model.state_dict(), other.model.state_dict())
    assert not torch.equal(one.model.head[1].weight, model.head[1].weight)
    assert one.metrics[0]["model_bytes"] == (0 if cut == "pool" else 3 * 2 * trained_bytes(small_model(), "head.") + 96)


EACH_TIME = (SplitFedV1, VanillaSL, SGLR, DecoupledSL, CycleSL)


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(s, marks=() if type(s) in EACH_TIME else pytest.mark.shows, id=name_of(s)) for s in STRATEGIES],
)
def test_every_strategy_trains_over_the_wire_what_it_does_in_one_process(strategy, tmp_path):
    options = {"model": frozen_model("batch"), "edges": 2, "devices": 4}
    assert_same_result(run(strategy, **options), run(strategy, backend=Wired(folder=tmp_path), **options))


def test_nodes_elsewhere_compute_the_same(elsewhere):
    options = {"model": frozen_model("batch", 0.3), "devices": 4, "edges": 2}
    assert_same_run(run(SplitFedV1(), **options), run(SplitFedV1(), backend=elsewhere, nodes=2, **options))


@strategies
def test_stopped_and_resumed_equals_never_stopped(strategy, tmp_path):
    """The model that a resumed run is given may have any frozen weights: the checkpoint's count."""
    whole = run(strategy, frozen_model("batch"), rounds=3, optimizer=KEPT)
    run(strategy, frozen_model("batch"), rounds=1, optimizer=KEPT, out=tmp_path / "run")
    other = frozen_model("batch", seed=5)
    resumed = run(strategy, other, rounds=3, optimizer=KEPT, out=tmp_path / "run", resume=True)
    assert_same_run(whole, resumed)
    kept = load_file(tmp_path / "run" / "checkpoint" / "frozen.safetensors")
    assert kept.keys() == set(FROZEN)
    assert not any(n.partition(".")[2] in FROZEN for n in load_file(tmp_path / "run/checkpoint/model.3.safetensors"))


def test_what_is_written_is_whole(tmp_path):
    run(SplitFedV1(), frozen_model(), out=tmp_path / "averaged")
    assert load_file(tmp_path / "averaged" / "model.safetensors").keys() == frozen_model().state_dict().keys()
    private = run(SplitFedV3(), frozen_model(), out=tmp_path / "private", cut=U)
    back, front = (load_file(tmp_path / "private" / name) for name in ("back.safetensors", "fronts/0.safetensors"))
    assert back.keys() | front.keys() == frozen_model().state_dict().keys()
    assert torch.equal(front["conv.0.weight"], frozen_model().conv[0].weight)
    assert private.states["back"].keys() == back.keys()


def test_init_from_brings_frozen_weights_to_every_node(tmp_path, elsewhere):
    other = frozen_model(seed=7)
    save_file(other.state_dict(), tmp_path / "first.safetensors")
    expected = run(SplitFedV1(), other, devices=4)
    for options in ({}, {"nodes": 2, "backend": elsewhere}):
        found = run(SplitFedV1(), frozen_model(), devices=4, init_from=tmp_path / "first.safetensors", **options)
        assert_same_bits(found.model.state_dict(), expected.model.state_dict())


class Late(fsl.Observer):
    """Lets modules do what they do late in a run, behind all checks."""

    now = False

    def on_round(self, row):
        Late.now = True

    def on_end(self):
        Late.now = False


class Teacher(torch.nn.Module):
    """Moves a frozen copy of its weight in forward, as a momentum encoder does."""

    def __init__(self, late):
        super().__init__()
        self.student, self.teacher = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).requires_grad_(False)
        self.late = late

    def forward(self, x):
        if self.training and (Late.now or not self.late):
            self.teacher.weight.data.lerp_(self.student.weight.data, 0.1)
        return self.student(x) + self.teacher(x)


class Unfreezes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x):
        if Late.now:
            self.two.requires_grad_(True)
        return self.two(self.one(x))


def ending_with(module):
    model = small_model()
    model.head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 4 * 4, 4), module)
    return model


def test_a_frozen_parameter_that_forward_changes_is_refused_before_the_run():
    with pytest.raises(SplitError, match=r"forward changes the frozen parameter 'head\.2\.teacher\.weight'"):
        run(SplitFedV1(), ending_with(Teacher(late=False)))


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2(), FedAvg()], ids=name_of)
def test_one_that_changes_in_the_middle_of_a_run_ends_it(strategy):
    with pytest.raises(RunError, match=r"changed the frozen parameter 'head\.2\.teacher\.weight'"):
        run(strategy, ending_with(Teacher(late=True)), observers=[Late()])
    with pytest.raises(RunError, match=r"'head\.2\.two\.weight' was frozen when the run began"):
        run(strategy, ending_with(Unfreezes()), observers=[Late()])


@pytest.mark.parametrize(
    ("strategy", "both"),
    [(SplitFedV1(), True), (SplitFedV3(), False), (FedAvg(), False)],
    ids=["SplitFedV1-together", "SplitFedV3-apart", "FedAvg-apart"],
)
def test_nodes_that_built_other_frozen_weights_get_the_runs(strategy, both, tmp_path, caplog):
    """As where a run begins from a file that only the cloud has: each node gets them once, and none gets others."""
    caplog.set_level("INFO")
    options = {"model": frozen_model("batch"), "edges": 2, "devices": 4}
    backend = Wired(folder=tmp_path, model=frozen_model("batch", seed=3), both=both)
    assert_same_result(run(strategy, **options), run(strategy, backend=backend, **options))
    told = [record.getMessage() for record in caplog.records if "frozen weights" in record.getMessage()]
    assert told
    assert len(told) == len(set(told))


def test_a_node_with_other_frozen_weights_does_not_train(tmp_path, monkeypatch):
    monkeypatch.setattr(FrozenWeights, "lacking", lambda self, member, segments: {})
    backend = Wired(folder=tmp_path, model=frozen_model(seed=3))
    with pytest.raises(RunError, match="this node's frozen weights of the front are not the run's"):
        run(SplitFedV1(), frozen_model(), backend=backend)


def test_a_node_that_restarts_with_its_own_gets_the_runs_again(tmp_path, monkeypatch):
    """It loses one round, as any node that restarts in the middle of one; the next question finds what it has."""
    trained = NetworkedNode.train

    def restarts_in_round_two(node, plan, part, arrays):
        if plan.round == 2 and 0 in node.settings.devices:
            for frozen in node.node.frozen.values():
                frozen.load(frozen_model(seed=3).state_dict())
        return trained(node, plan, part, arrays)

    monkeypatch.setattr(NetworkedNode, "train", restarts_in_round_two)
    found = run(FedAvg(), frozen_model(), backend=Wired(folder=tmp_path), devices=2, rounds=3)
    assert [list(row["lost"]) for row in found.metrics] == [[], ["0"], []]
    assert "this node's frozen weights of the front are not the run's" in found.metrics[1]["lost"]["0"]


def test_a_member_that_is_asked_again_says_what_it_has():
    frozen = {"front": Layout(frozen_model()).frozen}
    weights, told = FrozenWeights(frozen), {"front": frozen["front"].digest}
    member = Member(1, "device", {0: 4}, None, "", b"", "")
    assert [list(weights.lacking(member, ["front"])) for _ in range(2)] == [["front"], []]
    assert not weights.lacking(replace(member, frozen=told), ["front"])
    assert list(weights.lacking(replace(member), ["front"])) == ["front"]


@pytest.mark.parametrize(
    "data", [b"no file", save({"x": torch.ones(1)}), save({n: torch.full((1,), torch.nan) for n in FROZEN})]
)
def test_frozen_weights_that_cannot_be_used_are_refused(data):
    frozen = {"front": Layout(frozen_model()).frozen}
    array = to_array(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    with pytest.raises(WireError, match="the frozen weights of the front that came cannot be used"):
        take_frozen(with_frozen_arrays(ArrayRecord(), {"front": array}), {}, frozen, [])
