"""Which devices are there in a round, and what becomes of a round without enough of them."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from fsl.strategies import PSL, FedAvg, SplitFedV1, SplitFedV2
from fsl.strategies.participation import Participation

from fsl.availability import Availability, RandomAvailability, TraceAvailability, knows_who_is_away
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.errors import CheckpointError, ConfigError, RunError
from fsl.gapped_range import GappedRange
from fsl.privacy import DPSGD
from fsl.selection import BySamples, PowerOfChoice, RoundRobin, Uniform
from fsl.settings.federation_settings import Federation
from tests.helpers.runs import KEPT, KillAfter, KilledError, assert_same_bits, assert_same_run, run

DAYS = {0: [1, 2], 1: [2], 2: []}


def rounds_of(availability, device, rounds=6, seed=0):
    return [round for round in range(1, rounds + 1) if availability.available(device, round, seed)]


def test_a_chance_is_that_of_each_round():
    random = RandomAvailability(0.3)
    there = sum(random.available(device, round, 0) for device in range(20) for round in range(1, 101))
    assert abs(there / 2000 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)
    assert rounds_of(random, 3, 50) != rounds_of(random, 4, 50)
    assert rounds_of(random, 3, 50) != rounds_of(random, 3, 50, seed=1)


def test_chances_go_by_device():
    listed = RandomAvailability([0.0, 1.0])
    assert [rounds_of(listed, device) for device in range(4)] == [[], [*range(1, 7)], [], [*range(1, 7)]]
    named = RandomAvailability({2: 0})
    assert [rounds_of(named, device) for device in (1, 2)] == [[*range(1, 7)], []]


def test_a_trace_names_rounds():
    trace = TraceAvailability(rounds=DAYS)
    assert [rounds_of(trace, device) for device in range(4)] == [[1, 2], [2], [], [*range(1, 7)]]
    assert rounds_of(TraceAvailability(rounds=DAYS, period=3), 0) == [1, 2, 4, 5]


def test_a_trace_may_be_a_file(tmp_path):
    (tmp_path / "a.csv").write_text("device,round\n0,1\n1,2\n0,2\n")
    (tmp_path / "a.json").write_text(json.dumps(DAYS))
    listed, named = (TraceAvailability(str(tmp_path / name)) for name in ("a.csv", "a.json"))
    assert [rounds_of(listed, device) for device in range(2)] == [[1, 2], [2]]
    assert [rounds_of(named, device) for device in range(3)] == [[1, 2], [2], []]


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: RandomAvailability(1.5), "availability.p=1.5: give a probability from 0 to 1"),
        (lambda: RandomAvailability([0.5, "a"]), "availability.p='a' of device 1"),
        (lambda: RandomAvailability({}), "availability.p={}: it is empty"),
        (lambda: TraceAvailability(), "give either path, a CSV or JSON file, or rounds"),
        (lambda: TraceAvailability("a.csv", {0: [1]}), "give either path"),
        (lambda: TraceAvailability(rounds={0: 3}), "availability.rounds: device 0 has 3; give a list of rounds"),
        (lambda: TraceAvailability(rounds={0: [0]}), "availability.rounds: device 0 has round 0"),
        (lambda: TraceAvailability(rounds={"a": [1]}), "availability.rounds: 'a' is no whole number"),
        (lambda: TraceAvailability(rounds={0: [1]}, period=0), "availability.period=0"),
        (lambda: TraceAvailability("no.csv"), "availability.path=no.csv: it cannot be read (No such file"),
    ],
)
def test_what_cannot_be_is_refused(build, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        build()


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.csv", "device,time\n0,1\n", "a.csv, line 2: it has no device and round"),
        ("a.csv", "device,round\n", "a.csv: it has no rows"),
        ("a.json", "[1]", "a.json: it is a list; give lists of rounds by device id"),
        ("a.json", "{", "a.json: it is no JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(name, text, line, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=re.escape(line)):
        TraceAvailability(str(tmp_path / name))


# In a run.

FEW = {"devices": 4, "rounds": 3}


class Only(SplitFedV1):
    """Of tests: chooses these devices in each round."""

    def __init__(self, *rounds):
        super().__init__()
        self.rounds = rounds

    def select(self, round):
        return self.rounds[round - 1]


def test_who_is_there_trains(caplog):
    found = run(SplitFedV1(), availability=DAYS, **FEW)
    assert [(row["available"], row["devices"]) for row in found.metrics] == [(2, 2), (3, 3), (1, 1)]
    by_hand = run(Only([0, 3], [0, 1, 3], [3]), **FEW)
    assert_same_bits(found.model.state_dict(), by_hand.model.state_dict())
    assert not caplog.text


def test_a_round_with_too_few_says_so(caplog):
    found = run(SplitFedV1(), availability=DAYS, devices_per_round=2, **FEW)
    assert [row["devices"] for row in found.metrics] == [2, 2, 1]
    assert [line.getMessage() for line in caplog.records] == [
        "round 3: 1 of 4 devices are available, fewer than devices_per_round=2"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2(), FedAvg(), PSL()], ids=lambda s: type(s).__name__)
def test_a_round_without_anybody_keeps_everything(strategy, caplog):
    """A run with an empty round is the run without it, but for what is drawn by a round's number."""
    away = {device: [1, 3] for device in range(4)}
    options = FEW | {"optimizer": KEPT, "availability": away}
    found, first = run(strategy, **options), run(strategy, **options | {"rounds": 1})
    empty = found.metrics[1]
    assert (empty["available"], empty["devices"], empty["train_loss"], empty["sim_seconds"]) == (0, 0, None, 0.0)
    assert (empty["loss"], empty["accuracy"]) == (found.metrics[0]["loss"], found.metrics[0]["accuracy"])
    assert "round 2: nobody trains, and the model stays as it was: 0 of 4 devices are available" in caplog.text
    two = run(strategy, **options | {"rounds": 2})
    for segment in first.states:
        assert_same_bits(first.states[segment], two.states[segment])
    assert found.metrics[2]["devices"] == 4


@pytest.mark.slow
def test_an_empty_round_costs_no_privacy():
    options = FEW | {"batch_size": 4, "privacy": DPSGD(), "rounds": 2, "evaluate_every": 0}
    found = run(SplitFedV1(), availability={device: [1] for device in range(4)}, **options)
    assert [row["devices"] for row in found.metrics] == [4, 0]
    assert found.metrics[0]["epsilon_model"] == found.metrics[1]["epsilon_model"] > 0


@pytest.mark.slow
def test_a_run_goes_on_over_an_empty_round(tmp_path):
    options = FEW | {"optimizer": KEPT, "availability": {device: [1, 3] for device in range(4)}}
    whole = run(PSL(), **options)
    with pytest.raises(KilledError):
        run(PSL(), out=tmp_path, observers=[KillAfter(2)], **options)
    assert_same_run(whole, run(PSL(), out=tmp_path, resume=True, **options))


def test_a_run_goes_on_only_with_the_devices_that_it_began_with(tmp_path):
    run(SplitFedV1(), out=tmp_path, availability=DAYS, **FEW)
    with pytest.raises(CheckpointError, match="availability="):
        run(SplitFedV1(), out=tmp_path, resume=True, availability={0: [1]}, **FEW | {"rounds": 4})


def test_a_strategy_that_chooses_itself_gets_who_is_there():
    found = run(Only([0, 2], [2], [1, 3]), availability=DAYS, **FEW)
    assert [row["devices"] for row in found.metrics] == [1, 0, 1]


def test_a_strategy_may_ask_who_is_there():
    class Asking(SplitFedV1):
        def select(self, round):
            return list(self.available(round))[-1:]

    assert [row["devices"] for row in run(Asking(), availability=DAYS, **FEW).metrics] == [1, 1, 1]


def test_the_same_devices_are_there_on_any_number_of_nodes():
    options = FEW | {"availability": RandomAvailability(0.5), "devices": 6, "devices_per_round": 2}
    assert_same_run(run(SplitFedV1(), **options), run(SplitFedV1(), nodes=3, **options))


@pytest.mark.parametrize(
    ("availability", "line"),
    [
        ("somtimes", "there is no such availability"),
        (3, "availability=3: give one of fsl.availability"),
        ({9: [1]}, "availability: there is no device 9; there are 0 to 3"),
        (RandomAvailability({9: 0.5}), "availability.p: there is no device 9"),
    ],
)
def test_what_no_run_can_have_is_refused(availability, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        run(SplitFedV1(), availability=availability, **FEW)


def test_an_answer_that_is_no_truth_is_one_line():
    kind = type("Mine", (Availability,), {"available": lambda self, device, round, seed: None})
    with pytest.raises(RunError, match=re.escape("round 1: Mine.available() gave None for device 0; give True or")):
        run(SplitFedV1(), availability=kind, **FEW)


def test_krum_is_refused_where_a_round_may_have_too_few():
    with pytest.raises(ConfigError, match="aggregator=Krum with availability=RandomAvailability"):
        run(
            SplitFedV1(), availability="random", aggregator="krum", selection=RoundRobin, devices=6, devices_per_round=5
        )


def test_a_real_federation_refuses_it():
    with pytest.raises(ConfigError, match="availability=RandomAvailability: in a real federation devices are there"):
        Federation(run="a", availability=RandomAvailability(), placement=Roster("", Terms()))


@pytest.mark.parametrize("away", [(), (0,), (9,), (2, 3, 7), tuple(range(10))])
def test_a_range_with_gaps_is_as_a_list_without_them(away):
    found, expected = GappedRange(10, away), [device for device in range(10) if device not in away]
    assert list(found) == expected
    assert [found[place] for place in range(-len(found), len(found))] == [*expected, *expected]
    assert [device in found for device in range(-1, 12)] == [device in expected for device in range(-1, 12)]
    assert all(found[start:stop] == expected[start:stop] for start in range(-3, 12) for stop in (None, 0, 4, 20))
    assert [np.int64(device) in found for device in range(12)] == [device in expected for device in range(12)]
    assert "3" not in found
    assert 2.5 not in found
    with pytest.raises(IndexError):
        found[len(expected)]


class Asked(Availability):
    """The same answers as another's, without what it knows ahead."""

    def __init__(self, other):
        self.other = other

    def available(self, device, round, seed):
        return self.other.available(device, round, seed)


@pytest.mark.parametrize("selection", [Uniform, BySamples, RoundRobin, PowerOfChoice])
@pytest.mark.parametrize(
    "known", [TraceAvailability(rounds={1: [2], 4: [], 7: [1, 3]}), RandomAvailability({0: 0.5, 3: 0.2, 8: 0.4})]
)
def test_who_takes_part_is_the_same_as_by_asking_about_each_device(selection, known):
    def chosen(availability):
        training = SimpleNamespace(devices=10, devices_per_round=3, seed=0, deadline=None)
        federation = SimpleNamespace(
            training=training, selection=selection(), availability=availability, samples=lambda device: device + 1
        )
        asked = Participation(federation)
        return [(list(asked.available(round)), list(asked.select(round, None, {}.get))) for round in range(1, 6)]

    assert chosen(known) == chosen(Asked(known))


def test_a_subclass_that_answers_otherwise_is_asked():
    class Half(TraceAvailability):
        def available(self, device, round, seed):
            return device % 2 == 0

    assert not knows_who_is_away(Half(rounds={1: [2]}))
    assert knows_who_is_away(TraceAvailability(rounds={1: [2]}))
