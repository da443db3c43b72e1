"""Who takes part in a round: each rule chooses as its page says, and what cannot be chosen is one line."""

import math
import re

import numpy as np
import pytest
from fsl.strategies import PSL, FedAvg, SplitFedV1

from fsl import seeds
from fsl.data import Dirichlet
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.errors import CheckpointError, ConfigError, RunError
from fsl.privacy import DPSGD
from fsl.run.private_rounds import most_ahead, rounds_ahead
from fsl.selection import BySamples, Candidates, FedCS, PowerOfChoice, RoundRobin, Selection, Uniform
from fsl.settings.federation_settings import Federation
from fsl.settings.training_settings import Training
from tests.helpers.runs import KillAfter, KilledError, assert_same_bits, assert_same_result, assert_same_run, run
from tests.helpers.wired import Wired, WiredGrid

FEW = {"devices": 6, "devices_per_round": 2, "rounds": 4, "partition": Dirichlet(0.5, min_samples=4)}


def candidates(devices=10, count=3, round=1, samples=None, seconds=None, **options):
    """Candidates of a round; `samples` and `seconds` by device."""
    ids = options.pop("ids", range(devices))
    return Candidates(
        **{"round": round, "seed": 0, "devices": ids, "count": min(count, len(ids)), "per_round": count},
        total=devices,
        samples_of=None if samples is None else samples.__getitem__,
        predict=seconds,
        **options,
    )


# Each rule for itself.


def test_uniform_draws_are_those_of_before():
    for round in range(1, 5):
        draw = seeds.numpy_generator(0, "participants", round=round)
        before = sorted(int(device) for device in draw.choice(10, 3, replace=False))
        assert Uniform().select(candidates(round=round)) == before


def test_draws_by_samples_go_by_samples():
    held = [1, 1, 1, 1, 16]
    drawn = [BySamples().select(candidates(5, 1, round, samples=held)) for round in range(1, 801)]
    counts = np.bincount([device for (device,) in drawn], minlength=5)
    assert abs(counts[4] / 800 - 16 / 20) < 4 * math.sqrt(0.8 * 0.2 / 800)
    assert all(10 < count < 80 for count in counts[:4])


def test_devices_take_turns():
    chosen = [RoundRobin().select(candidates(5, 2, round)) for round in range(1, 6)]
    assert chosen == [[0, 1], [2, 3], [0, 4], [1, 2], [3, 4]]


def test_who_is_away_misses_its_turn():
    assert RoundRobin().select(candidates(5, 2, 2, ids=[0, 1, 3, 4])) == [3, 4]


def test_power_of_choice_takes_the_highest_losses():
    rule = PowerOfChoice(d=6)
    rule.note(1, {device: float(device) for device in range(6)})
    assert rule.select(candidates(6, 2, samples=[1] * 6)) == [4, 5]
    rule.note(2, {5: 0.5, 4: math.nan})
    assert rule.select(candidates(6, 2, samples=[1] * 6)) == [3, 4]


def test_power_of_choice_tries_those_that_it_does_not_know_first():
    rule = PowerOfChoice(d=6)
    rule.note(1, dict.fromkeys((0, 1, 2, 4), 9.0))
    assert rule.select(candidates(6, 2, samples=[1] * 6)) == [3, 5]


def test_power_of_choice_among_as_many_candidates_is_a_draw_by_samples():
    held = [1, 1, 1, 1, 16]
    rule = PowerOfChoice(d=1)
    rule.note(1, {0: 9.0, 1: 8.0, 2: 7.0, 3: 6.0, 4: 0.1})
    drawn = [rule.select(candidates(5, 1, round, samples=held))[0] for round in range(1, 301)]
    assert drawn.count(4) > 200


def test_equal_losses_are_decided_by_lot():
    drawn = [PowerOfChoice(d=6).select(candidates(6, 1, round, samples=[1] * 6))[0] for round in range(1, 61)]
    assert set(drawn) == set(range(6))


def waiting(devices):
    """Each device takes as many seconds as its id, and waits a second for every other one."""
    return {device: device + 1.0 + len(devices) - 1 for device in devices}


@pytest.mark.parametrize(
    ("deadline", "chosen"), [(0.5, []), (1.0, [0]), (3.0, [0, 1]), (6.0, [0, 1, 2]), (99.0, list(range(10)))]
)
def test_fedcs_takes_as_many_as_are_in_time(deadline, chosen):
    assert FedCS(deadline).select(candidates(10, 10, seconds=waiting)) == chosen


def test_fedcs_goes_on_behind_one_that_does_not_fit():
    def seconds(devices):
        return {device: 9.0 if {0, 1} <= {*devices} else 1.0 + device for device in devices}

    assert FedCS(5.0).select(candidates(4, 4, seconds=seconds)) == [0, 2, 3]


def test_fedcs_asks_as_many_as_a_round_has():
    assert len(FedCS(99.0).select(candidates(10, 3, seconds=waiting))) == 3


@pytest.mark.parametrize("rule", [Uniform(), BySamples(), RoundRobin(), PowerOfChoice(), FedCS(99.0)])
def test_all_that_are_there_are_taken_where_they_are_too_few(rule):
    assert list(rule.select(candidates(10, 5, samples=[1] * 10, seconds=waiting, ids=[2, 7, 9]))) == [2, 7, 9]


# In a run.

RULES = [BySamples(), RoundRobin(), PowerOfChoice(d=4), FedCS(60.0)]


def named(value):
    """A test's name for a value: without an address, which differs between workers."""
    return re.sub(r" object at 0x\w+| at 0x\w+", "", str(value))[-40:]


rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


@pytest.mark.slow
@rules
def test_split_training_chooses_as_its_control(rule):
    """Losses of SplitFed V1 and FedAvg are equal to the bit, and so is who takes part."""
    split, whole = run(SplitFedV1(), selection=rule, **FEW), run(FedAvg(), selection=rule, **FEW)
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())
    assert all(row["devices"] == 2 for row in split.metrics)


@pytest.mark.slow
def test_a_rule_makes_a_difference():
    losses = {str(run(SplitFedV1(), selection=rule, **FEW).metrics[-1]["loss"]) for rule in (None, *RULES[:3])}
    assert len(losses) == 4


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["power_of_choice", "round_robin"])
def test_killed_and_resumed_equals_never_stopped(rule, tmp_path):
    options = FEW | {"selection": rule, "availability": "random"}
    whole = run(PSL(), **options)
    with pytest.raises(KilledError):
        run(PSL(), out=tmp_path, observers=[KillAfter(2)], **options)
    assert_same_run(whole, run(PSL(), out=tmp_path, resume=True, **options))


@pytest.mark.slow
def test_a_run_goes_on_only_with_the_rule_that_it_began_with(tmp_path):
    run(SplitFedV1(), out=tmp_path, selection=PowerOfChoice(d=3), **FEW)
    with pytest.raises(CheckpointError, match=r"selection=.*PowerOfChoice.*'d': 3"):
        run(SplitFedV1(), out=tmp_path, resume=True, selection=PowerOfChoice(d=4), **FEW | {"rounds": 5})


def test_an_object_serves_several_runs():
    rule = PowerOfChoice(d=4)
    assert_same_run(run(SplitFedV1(), selection=rule, **FEW), run(SplitFedV1(), selection=rule, **FEW))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["by_samples", "power_of_choice", "round_robin"])
def test_over_the_wire_the_same_devices_are_chosen(rule, tmp_path):
    options = {"devices": 4, "devices_per_round": 2, "edges": 2, "selection": rule, "rounds": 3}
    wired = run(SplitFedV1(), backend=Wired(folder=tmp_path), **options)
    assert_same_result(run(SplitFedV1(), **options), wired)


@pytest.mark.slow
def test_over_the_wire_a_rule_by_samples_chooses_among_those_online(tmp_path):
    """No node hosts device 3, so that its n_k is not known."""
    backend = Wired(folder=tmp_path, device_nodes=1, edges=1, roster=Roster("", Terms(wait=0.5, bind_keys=False)))
    options = {"devices": 4, "devices_per_round": 3, "rounds": 2, "selection": "by_samples"}
    found = run(SplitFedV1(), backend=Fewer(**vars(backend)), **options)
    assert [row["devices"] for row in found.metrics] == [3, 3]
    assert all(row["lost"] == {} for row in found.metrics)


class Fewer(Wired):
    """Hosts all devices but the last."""

    def open(self, workload, nodes):
        return WiredGrid(workload, self, workload.partition.devices - 1)


def test_on_nodes_elsewhere_the_same_devices_are_chosen(elsewhere):
    options = FEW | {"selection": "power_of_choice"}
    assert_same_run(run(SplitFedV1(), **options), run(SplitFedV1(), nodes=2, backend=elsewhere, **options))


# A rule of one's own.


class Stalest(Selection):
    """Of tests: as on the page."""

    def __init__(self):
        self.last = {}

    def select(self, candidates):
        return sorted(candidates.devices, key=lambda device: (self.last.get(device, 0), device))[: candidates.count]

    def note(self, round, losses):
        assert all(math.isnan(loss) for loss in losses.values())
        self.last.update(dict.fromkeys(losses, round))

    def state(self):
        return {str(device): round for device, round in self.last.items()}

    def load_state(self, state):
        self.last = {int(device): round for device, round in state.items()}


def test_a_rule_of_ones_own_remembers(tmp_path):
    whole = run(SplitFedV1(), selection=Stalest(), **FEW)
    in_turn = run(SplitFedV1(), selection=RoundRobin, **FEW)
    assert_same_run(whole, in_turn)
    with pytest.raises(KilledError):
        run(SplitFedV1(), out=tmp_path, observers=[KillAfter(2)], selection=Stalest, **FEW)
    resumed = run(SplitFedV1(), out=tmp_path, resume=True, selection=f"{__name__}.Stalest", **FEW)
    assert_same_run(whole, resumed)


def rule_with(answer=(0, 1), **attributes):
    return type("Mine", (Selection,), {"select": lambda self, given: answer, **attributes})()


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (None, "Mine.select() gave None, no list; devices are whole numbers 0 to 5"),
        ((1, 1), "Mine.select() chose device 1 twice"),
        ((9,), "Mine.select() chose 9; devices are whole numbers 0 to 5"),
        ((2,), "Mine.select() chose device 2, which is not available; choose of candidates.devices"),
    ],
)
def test_an_answer_that_cannot_be_is_one_line(answer, line):
    with pytest.raises(RunError, match=re.escape(f"round 1: {line}")):
        run(SplitFedV1(), selection=rule_with(answer), availability={2: [2]}, **FEW)


def test_a_memory_that_no_checkpoint_keeps_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"Mine.state\(\) gave .*which a checkpoint cannot keep"):
        run(SplitFedV1(), selection=rule_with(state=lambda self: {"a": {1, 2}}), **FEW)


def test_a_rule_is_told_only_what_it_needs():
    asks = rule_with()
    type(asks).select = lambda self, given: given.samples(0)
    with pytest.raises(RunError, match=re.escape('asks for n_k says so: needs = ("samples",)')):
        run(SplitFedV1(), selection=asks, **FEW)


def test_a_round_for_which_nobody_is_chosen_keeps_the_model(caplog):
    rule = rule_with(select=lambda self, given: given.devices[:1] if given.round == 2 else ())
    found = run(SplitFedV1(), selection=rule, **FEW | {"rounds": 2})
    assert [row["devices"] for row in found.metrics] == [0, 1]
    assert "round 1: nobody trains, and the model stays as it was: none was selected" in caplog.text


# What does not go together is refused.


class Own(SplitFedV1):
    def select(self, round):
        return super().select(round)


REFUSED = [
    ({"selection": "by_sample"}, "there is no such selection; did you mean 'by_samples'?"),
    ({"selection": 3}, "selection=3: give one of fsl.selection"),
    ({"selection": "fsl.data.IID"}, "give one of fsl.selection"),
    ({"selection": "custom"}, "selection names no class; set selection._target_"),
    ({"selection": "by_samples", "devices_per_round": None}, "with devices_per_round=null every device takes part"),
    ({"selection": "power_of_choice", "devices_per_round": 6}, "with devices_per_round=6 every device takes part"),
    ({"selection": "round_robin", "devices_per_round": 6}, "selection=round_robin: with devices_per_round=6"),
    ({"selection": PowerOfChoice(1)}, "selection.d=1: candidates are at least devices_per_round=2 and at most"),
    ({"selection": PowerOfChoice(7)}, "and at most devices=6"),
    ({"selection": "fedcs"}, "selection=fedcs: it takes the devices that are done by a deadline, and there is none"),
    (
        {"selection": "power_of_choice", "privacy": DPSGD(), "batch_size": 2},
        "selection=PowerOfChoice in a run with privacy",
    ),
    ({"selection": FedCS(9.0), "mobility": "random", "edges": 2}, "selection=FedCS with mobility"),
    # What does not go together comes before values to mend: with them mended it would be refused all the same.
    ({"selection": FedCS(1e-6), "mobility": "random", "edges": 2}, "selection=FedCS with mobility"),
    ({"selection": "fedcs", "mobility": "random", "edges": 2}, "selection=FedCS with mobility"),
    ({"selection": FedCS(9.0), "mobility": "random"}, "selection=FedCS with mobility"),
    ({"selection": FedCS(1e-6)}, "selection.deadline=1e-06: the fastest device takes 0."),
    ({"selection": FedCS(1e-6), "deadline": 9.0}, "selection.deadline=1e-06: the fastest device takes 0."),
    ({"selection": FedCS(9.0), "deadline": 1e-6}, "deadline=1e-06: the fastest device takes 0."),
    ({"selection": rule_with(needs=("loss",))}, "Mine.needs=('loss',): give some of samples, losses, seconds"),
    ({"selection": rule_with(needs="samples")}, "Mine.needs='samples': give some of samples, losses, seconds"),
    ({"selection": FedCS(9.0), "aggregator": "krum", "devices_per_round": 5}, "aggregator=Krum with selection=FedCS"),
    ({"selection": "by_samples", "strategy": Own()}, "selection=BySamples: Own overrides select()"),
]


@pytest.mark.parametrize(("options", "line"), REFUSED, ids=named)
def test_what_does_not_go_together_is_refused(options, line, tmp_path):
    options = FEW | {"strategy": SplitFedV1()} | options
    with pytest.raises(ConfigError, match=re.escape(line)):
        run(options.pop("strategy"), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("build", "line"), [(lambda: PowerOfChoice(0), "selection.d=0"), (lambda: FedCS(-1.0), "selection.deadline=-1")]
)
def test_an_option_that_cannot_be_is_refused(build, line):
    with pytest.raises(ConfigError, match=line):
        build()


def test_a_strategy_that_chooses_itself_may_ask_the_default():
    assert_same_run(run(Own(), selection="uniform", **FEW), run(SplitFedV1(), **FEW))


def test_a_real_federation_refuses_predictions():
    with pytest.raises(ConfigError, match="selection=FedCS: it goes by simulated seconds"):
        Federation(run="a", selection=FedCS(9.0), placement=Roster("", Terms()))


@pytest.mark.parametrize(
    ("selection", "real", "rounds"),
    [
        (Uniform(), False, 2),
        (RoundRobin(), True, 2),
        (BySamples(), False, 2),
        (BySamples(), True, 6),
        (Stalest(), False, 6),
    ],
    ids=named,
)
def test_noise_for_a_target_counts_every_round_where_nobody_knows_who_takes_part(selection, real, rounds):
    training = Training(devices=3, devices_per_round=1, rounds=6)
    strategy = SplitFedV1()
    placement = Roster("", Terms()) if real else None
    federation = Federation(
        run="a", training=training, selection=selection, placement=placement, samples=lambda device: 5
    )
    strategy.bind(federation)
    found = rounds_ahead(strategy, federation)
    assert sum(found.values()) == (18 if rounds == 6 else 6)
    assert most_ahead(strategy, federation) == (3 if rounds == 6 else 1)
