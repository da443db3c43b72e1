"""What an edge trainer keeps from round to round: the same on every backend, resumed, and never of a broken round."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fsl.strategies import SplitFedV1

import fsl
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.errors import ConfigError, RunError, WireError
from fsl.files import load_tensors
from fsl.messages.round_plan import RoundPlan
from fsl.mobility import RandomMobility
from fsl.privacy.settings import CutNoise, Privacy, RandomizedLabels
from fsl.round.node_store import Store
from fsl.round.trainer_memory import TrainerMemory
from tests.helpers.edges import edge_with, packet
from tests.helpers.lowlevel import a_plan
from tests.helpers.own_trainers import Counting, Now, Replay, Silent, Within, by
from tests.helpers.runs import assert_same_bits, assert_same_run
from tests.helpers.vectors import FEEDBACK, run
from tests.helpers.wired import Wired

trainers = pytest.mark.parametrize("trainer", [Replay, Counting], ids=["by edge", "by device"])
OPTIONS = {"devices": 4, "edges": 2, "rounds": 3}


def generations(folder: Path) -> dict[str, list[int]]:
    """The rounds of which something is kept, by owner."""
    found = (folder / "checkpoint" / "devices" / "trainers").glob("*/*")
    return {owner.name: sorted(int(file.stem) for file in owner.iterdir()) for owner in sorted(found)}


def kept_of(folder: Path, trainer: type, owner: str, round: int) -> dict[str, torch.Tensor]:
    path = f"checkpoint/devices/trainers/tests.helpers.own_trainers.{trainer.__name__}/{owner}/{round}.safetensors"
    return load_tensors(folder / path)


def test_a_round_goes_on_from_what_the_one_before_kept():
    keeps, forgets = run(by(Replay), **OPTIONS), run(by(Within), **OPTIONS)
    losses = [[row["train_loss"] for row in found.metrics] for found in (keeps, forgets)]
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]


def test_what_is_kept_of_a_device_adds_up_over_rounds(tmp_path):
    run(by(Counting), out=tmp_path / "run", **OPTIONS)
    steps = [int(kept_of(tmp_path / "run", Counting, f"device-{d}", 3)["steps"]) for d in range(4)]
    assert steps == [9, 9, 9, 9]  # three steps a round


@pytest.mark.slow
@trainers
def test_it_is_equal_on_any_number_of_nodes(trainer):
    assert_same_run(run(by(trainer), **OPTIONS), run(by(trainer), nodes=3, **OPTIONS))


@pytest.mark.slow
@trainers
def test_it_is_equal_over_grpc(trainer, tmp_path):
    simulated, real = run(by(trainer), **OPTIONS), run(by(trainer), backend=Wired(folder=tmp_path), **OPTIONS)
    for segment in simulated.states:
        assert_same_bits(simulated.states[segment], real.states[segment])


def test_it_is_equal_on_nodes_elsewhere_with_codecs_that_have_state(elsewhere):
    options = {**OPTIONS, **FEEDBACK}
    assert_same_run(run(by(Counting), **options), run(by(Counting), nodes=2, backend=elsewhere, **options))


@pytest.mark.slow
@trainers
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(trainer, tmp_path):
    whole = run(by(trainer), **OPTIONS)
    run(by(trainer), out=tmp_path / "run", **OPTIONS | {"rounds": 2})
    assert_same_run(whole, run(by(trainer), out=tmp_path / "run", resume=True, **OPTIONS))


@pytest.mark.slow
@trainers
def test_what_a_round_kept_that_was_not_finished_is_not_read(trainer, tmp_path):
    whole = run(by(trainer), **OPTIONS)
    run(by(trainer), out=tmp_path / "run", **OPTIONS | {"rounds": 2})
    for owner in (tmp_path / "run" / "checkpoint" / "devices" / "trainers").glob("*/*"):
        (owner / "3.safetensors").write_bytes(b"half of it")
    assert_same_run(whole, run(by(trainer), out=tmp_path / "run", resume=True, **OPTIONS))


@trainers
def test_two_generations_are_kept_at_most(trainer, tmp_path):
    run(by(trainer), out=tmp_path / "run", **OPTIONS)
    assert set(map(tuple, generations(tmp_path / "run").values())) == {(2, 3)}


@trainers
def test_who_is_not_selected_keeps_what_it_had(trainer, tmp_path):
    """Two devices, each with an edge of its own, of which one trains in a round."""
    run(by(trainer), out=tmp_path / "run", devices=2, edges=2, devices_per_round=1, rounds=5)
    newest = [rounds[-1] for rounds in generations(tmp_path / "run").values()]
    assert len(newest) == 2
    assert min(newest) < max(newest) == 5


def test_a_trainer_may_keep_in_some_rounds_only(tmp_path):
    run(Now(), out=tmp_path / "run", **OPTIONS)
    assert generations(tmp_path / "run") == {"edge-0": [1, 3], "edge-1": [1, 3]}


@pytest.mark.parametrize("nothing", [{}, None], ids=["empty", "None"])
def test_where_nothing_is_kept_nothing_is_restored(nothing, monkeypatch):
    monkeypatch.setattr(Empty, "nothing", nothing)
    assert len(run(by(Empty), **OPTIONS).metrics) == OPTIONS["rounds"]


class Empty(Replay):
    nothing = None

    def kept(self, device=None):
        return self.nothing

    def restore(self, kept, device=None):
        raise AssertionError(f"restore was called with {kept}")


def test_what_is_no_tensor_cannot_be_kept():
    with pytest.raises(
        RunError, match=r"tests.helpers.own_trainers.Silent.kept returned a dict that is no mapping of names"
    ):
        run(by(Silent), rounds=1)


class Shelf(dict):
    """A memory in this process."""

    load, save = dict.get, dict.__setitem__


def test_of_a_device_that_is_lost_nothing_is_kept():
    shelf = Shelf()
    edge = edge_with(Counting(), memory=shelf)
    for device in (0, 1):
        edge.open(device, 6.0)
        edge.step([packet(device, 0)])
    edge.close(0)
    edge.lose(1)
    assert shelf == {"device-0": {"steps": torch.tensor(1)}}


def test_a_trainer_that_says_it_keeps_must_say_what():
    edge = edge_with(Mute(), memory=Shelf())
    edge.open(0, 6.0)
    with pytest.raises(ConfigError, match=r"Mute has keeps = True and must say in kept\(\) what it keeps"):
        edge.close(0)


class Mute(fsl.trainers.Replicated):
    keeps = True


def test_an_edge_keeps_what_visitors_taught_it():
    options = OPTIONS | {"mobility": RandomMobility(0.9)}
    assert_same_run(run(by(Replay), **options), run(by(Replay), nodes=2, **options))


def test_what_is_kept_of_a_device_does_not_move():
    with pytest.raises(ConfigError, match="keeps something of each device from round to round, which does not follow"):
        run(by(Counting), mobility=RandomMobility(0.5), **OPTIONS)


def test_what_is_kept_of_a_device_does_not_roam(tmp_path):
    backend = Wired(folder=tmp_path, roster=Roster("", Terms(wait=5, bind_keys=False, roaming=True)))
    with pytest.raises(RunError, match=r"deployment\.roaming=true: Counting keeps something of each device"):
        run(by(Counting), backend=backend, **OPTIONS)


@pytest.mark.parametrize(
    "part", [{"cut": CutNoise(1.0)}, {"labels": RandomizedLabels(epsilon=1.0)}], ids=["cut", "labels"]
)
def test_a_private_run_cannot_keep(part):
    with pytest.raises(ConfigError, match="keeps something of a round for the next, and what is learnt from it again"):
        run(by(Replay), privacy=Privacy(**part), **OPTIONS)
    assert run(SplitFedV1(), privacy=Privacy(**part), **OPTIONS | {"rounds": 1}).metrics


def test_a_plan_carries_the_generations_that_count():
    plan = replace(a_plan(), kept={"edge-0": (3, 2)})
    assert RoundPlan.from_json(plan.to_json()).kept == {"edge-0": (3, 2)}
    with pytest.raises(WireError, match=r"Expected `int` >= 0 - at `\$\.kept"):
        RoundPlan.from_json(plan.to_json().replace("[3, 2]", "[-1, 2]"))


def test_what_is_kept_comes_back_where_the_back_is_and_as_a_copy(tmp_path):
    worker = SimpleNamespace(store=Store(tmp_path), accelerator=torch.device("meta"))
    plan = replace(a_plan(), kept={"edge-0": (1, 0)})
    memory = TrainerMemory(plan, worker)
    shared = torch.ones(3)
    memory.save("edge-0", {"one": shared, "other": shared})
    found = memory.load("edge-0")
    assert {name: (tensor.device.type, tensor.shape) for name, tensor in found.items()} == {
        "one": ("meta", (3,)),
        "other": ("meta", (3,)),
    }
    assert memory.load("edge-1") is None
