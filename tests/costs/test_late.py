"""Who would be late is known before a round, and what they do until the deadline is charged."""

import re

import pytest
from fsl.strategies import PSL, FedAvg, SplitFedV1, SplitFedV2, SplitFedV3
from fsl.strategies.split_strategy import SplitStrategy

import fsl
from fsl.costs import DeviceLoad, DeviceProfile, LinkProfile, SegmentCost, Serving, late_devices, round_cost
from fsl.data import Dirichlet
from fsl.deployment.cloud.closing import refuse_without_nodes
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.errors import CheckpointError, ConfigError
from fsl.mobility import BackAndForth
from fsl.settings.federation_settings import Federation
from fsl.settings.training_settings import Training
from tests.helpers.runs import KEPT, STRATEGIES, KillAfter, KilledError, assert_same_bits, assert_same_run, run
from tests.helpers.small import small_model, small_task

# One byte takes a second over this link. A sample takes a slow device 2 s forward and 4 s backward, a fast one half of
# it, and the edge 3 s: with a queue the slow one is done after 24 s, the fast one after 16.
LINK = LinkProfile("unit", 8e-6, 8e-6)
SLOW, FAST, EDGE = DeviceProfile("slow", 1.0), DeviceProfile("fast", 2.0), DeviceProfile("edge", 1.0)
SEGMENTS = SegmentCost("front", "device", 2.0, 4.0), SegmentCost("back", "edge", 1.0, 2.0)
LOADS = [DeviceLoad(device, 0, 2, 2, 2, 2, 0) for device in range(2)]


def cost(loads=LOADS, kind="queue", late=(), deadline=float("inf")):
    machines = {0: SLOW, 1: FAST}
    serving = Serving(kind)
    return round_cost(
        loads, serving, SEGMENTS, machines, {0: LINK, 1: LINK}, {0: EDGE, 1: EDGE}, late=late, deadline=deadline
    )


def late(kind, deadline, loads=LOADS):
    return late_devices(loads, Serving(kind), lambda some: cost(some, kind), deadline)


# By hand.


@pytest.mark.parametrize(
    ("deadline", "computed", "up", "down"),
    [(1, 1, 0, 0), (2.75, 2, 1, 0), (8.75, 2, 1, 1), (11, 4, 1, 1), (15.75, 8, 2, 1), (18, 8, 2, 1), (22, 10, 2, 2)],
)
def test_who_is_late_is_charged_until_the_deadline(deadline, computed, up, down):
    slow, fast = cost(late={0}, deadline=deadline).devices
    assert (slow.compute_s, slow.up_bytes, slow.down_bytes, slow.seconds) == (computed, up, down, deadline)
    assert fast == cost().devices[1]


def test_a_round_with_someone_late_ends_at_the_deadline_at_the_earliest():
    assert (cost().seconds, cost(late={0}, deadline=20).seconds, cost(late={0}, deadline=2).seconds) == (24, 20, 16)


@pytest.mark.parametrize(("deadline", "found"), [(24, set()), (23.9, {0}), (16, {0}), (15.9, {0, 1})])
def test_with_a_back_of_its_own_late_is_who_is_not_done(deadline, found):
    assert late("queue", deadline) == found


@pytest.mark.parametrize("kind", ["lockstep", "turn"])
def test_with_a_shared_back_the_slowest_are_left_out_until_the_others_are_in_time(kind):
    both, fast = cost(kind=kind).seconds, cost(LOADS[1:], kind).seconds
    assert late(kind, both) == set()
    assert late(kind, both - 0.1) == late(kind, fast) == {0}
    assert late(kind, fast - 0.1) == {0, 1}


def test_with_a_shared_back_nobody_waits_for_who_is_late():
    assert cost(kind="lockstep", late={0}, deadline=18).devices[1] == cost(LOADS[1:], "lockstep").devices[0]


def test_every_edges_cohort_is_looked_at_alone():
    apart = [LOADS[0], DeviceLoad(1, 1, 2, 2, 2, 2, 0)]
    assert late("lockstep", 16, apart) == {0}


def test_a_device_that_waits_for_no_reply_is_done_when_its_edge_is():
    assert late("stream", cost(kind="stream").seconds) == set()
    assert late("stream", cost(kind="stream").seconds - 0.1) != set()


# Before a round it is known what is measured after it.

SKEWED = {"devices": 4, "edges": 2, "partition": Dirichlet(0.5, min_samples=5), "batch_size": 7, "rounds": 2}


class Checked(fsl.Observer):
    """Compares what was foreseen of a round with its row."""

    def __init__(self, foreseen):
        self.foreseen = foreseen

    def on_round(self, row):
        loads = self.foreseen.pop()
        for name in ("examples", "up_bytes", "down_bytes", "model_bytes"):
            assert row[name] == sum(getattr(load, name) for load in loads), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        *((strategy, {"local_epochs": 2, "rounds": 1}) for strategy in STRATEGIES),
        (SplitFedV1(), {"up": "int8", "down": "float16"}),
        (PSL(), {"cut": ["pool", "conv2"], "up": "int8"}),
        (SplitFedV1(), {"up": "c3", "down": "int8"}),
        (SplitFedV1(), {"up": ["topk", "int8"]}),
        (SplitFedV1(), {"up": ["bottleneck", "c3"]}),
        (PSL(), {"cut": ["pool", "conv2"], "up": "c3", "down": "topk"}),
        (SplitFedV1(), {"privacy": "dp_sgd", "batch_size": 4, "rounds": 1}),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else type(value).__name__,
)
def test_the_forecast_of_a_round_is_what_is_measured(strategy, options, monkeypatch):
    foreseen, configure = [], SplitStrategy.configure_train

    def foresee(self, round, *given):
        foreseen.append(self._forecasts._loads(round, range(4), {})[0])
        return configure(self, round, *given)

    monkeypatch.setattr(SplitStrategy, "configure_train", foresee)
    model = small_model("none" if "privacy" in options else "batch")
    run(strategy, model, observers=[Checked(foreseen)], **SKEWED | options)
    assert foreseen == []


@pytest.mark.parametrize(
    ("codec", "what"),
    [
        ("zstd", "the values"),
        (
            {"_target_": "fsl.codecs.Adaptive", "choices": [{"_target_": "fsl.codecs.Int8"}], "seconds": 1.0},
            "the rate of a link",
        ),
    ],
    ids=["values", "link"],
)
def test_a_deadline_refuses_a_codec_whose_bytes_nobody_predicts(codec, what):
    with pytest.raises(ConfigError, match=rf"its bytes depend on {what}, and what goes by predicted rounds"):
        run(SplitFedV1(), deadline=5.0, up=codec)


# In a run.

WEAK, STRONG = DeviceProfile("weak", 1e7), DeviceProfile("strong", 1e8)
MIXED = {
    "devices": 5,
    "edges": 2,
    "rounds": 3,
    "partition": Dirichlet(0.5, min_samples=5),
    "device_profile": [WEAK, STRONG],
    "link_profile": "lan",
}


class Only(SplitFedV1):
    """Of tests: chooses these devices in each round."""

    def __init__(self, kind, devices):
        super().__init__()
        self.kind, self.devices, self.fronts = kind, devices, kind.fronts

    def trainer(self, round):
        return self.kind.trainer(round)

    def select(self, round):
        return self.devices


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [SplitFedV1(), SplitFedV2(), SplitFedV3(), PSL(), FedAvg()], ids=lambda s: type(s).__name__
)
def test_a_run_with_a_deadline_is_one_of_those_who_are_in_time(strategy):
    """Also of what stays: fronts and optimizers of late devices are as they were, so that they are not there at all."""
    options = MIXED | {"optimizer": KEPT}
    seconds = run(strategy, **options | {"rounds": 1}).metrics[0]["sim_seconds"]
    found = run(strategy, deadline=0.5 * seconds, **options)
    counts = {(row["devices"], row["late"]) for row in found.metrics}
    assert len(counts) == 1
    devices, late = counts.pop()
    assert devices + late == 5
    assert 0 < late < 5
    assert all(row["sim_seconds"] >= 0.499999 * seconds for row in found.metrics)
    heard = set(range(5)) - late_of(strategy, 0.5 * seconds)
    alone = run(Only(strategy, sorted(heard)), **options)
    for segment in found.states:
        assert_same_bits(found.states[segment], alone.states[segment])
    assert [row["train_loss"] for row in found.metrics] == [row["train_loss"] for row in alone.metrics]
    if strategy.fronts == "private":
        fronts = {path.name for path in found.folder.fronts.iterdir()}
        assert fronts == {f"{device}.safetensors" for device in heard}


def late_of(strategy, deadline):
    """The devices that this deadline makes late, in the first round."""
    seen = []

    class Noting(type(strategy)):
        def _in_time(self, round, chosen):
            found = super()._in_time(round, chosen)
            seen.append({load.device for load in self._late})
            return found

    run(Noting(), deadline=deadline, **MIXED | {"rounds": 1})
    return seen[0]


def test_a_deadline_that_all_meet_changes_nothing_but_a_column():
    found, plain = run(SplitFedV1(), deadline=1e6, **MIXED), run(SplitFedV1(), **MIXED)
    assert_same_bits(found.model.state_dict(), plain.model.state_dict())
    for row, other in zip(found.metrics, plain.metrics):
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in other.items() if k != "seconds"
        } | {"late": 0}


@pytest.mark.slow
def test_a_round_in_which_all_are_late_keeps_the_model(caplog):
    """The link is gone from the second round on, for a while."""
    gone = LinkProfile("gone", 941.0, 941.0, trace=[[0.02, 0.0], [9.0, 1.0]])
    found = run(SplitFedV1(), deadline=0.02, **MIXED | {"link_profile": gone})
    late = [row["late"] for row in found.metrics]
    assert 5 in late
    empty = found.metrics[late.index(5)]
    assert (empty["devices"], empty["train_loss"], empty["sim_seconds"]) == (0, None, 0.02)
    assert "nobody trains, and the model stays as it was: all 5 devices are late" in caplog.text


@pytest.mark.slow
def test_killed_and_resumed_equals_never_stopped(tmp_path):
    options = MIXED | {"optimizer": KEPT, "deadline": 0.018, "devices_per_round": 3, "rounds": 4}
    whole = run(PSL(), **options)
    assert len({row["late"] for row in whole.metrics}) > 1
    with pytest.raises(KilledError):
        run(PSL(), out=tmp_path, observers=[KillAfter(2)], **options)
    assert_same_run(whole, run(PSL(), out=tmp_path, resume=True, **options))
    with pytest.raises(CheckpointError, match=r"deadline=0\.018, this one 0\.05"):
        run(PSL(), out=tmp_path, resume=True, **options | {"deadline": 0.05})


def test_fedcs_by_the_runs_deadline_leaves_nobody_late():
    found = run(SplitFedV1(), selection="fedcs", deadline=0.018, **MIXED)
    assert all(row["late"] == 0 and 0 < row["devices"] < 5 and row["sim_seconds"] <= 0.018 for row in found.metrics)


@pytest.mark.slow
def test_devices_that_are_cut_at_different_places_are_late_by_their_own_cut():
    cuts = {"cut": None, "cuts": {"weak": "conv", "strong": "conv2"}}
    seconds = run(SplitFedV1(), **MIXED | cuts).metrics[0]["sim_seconds"]
    found = run(SplitFedV1(), deadline=0.99 * seconds, **MIXED | cuts)
    assert [row["late"] for row in found.metrics] == [1, 1, 1]
    assert [sum(row["cuts"].values()) for row in found.metrics] == [4, 4, 4]


REFUSED = [
    ({"deadline": 0}, "deadline=0: simulated seconds of a round, above 0, or null for none"),
    ({"deadline": "1"}, "deadline='1': simulated seconds"),
    ({"deadline": True}, "deadline=True: simulated seconds"),
    ({"deadline": 1e-6}, "deadline=1e-06: the fastest device takes"),
    ({"deadline": 5.0, "mobility": "random"}, "deadline=5 with mobility: it goes by predicted times"),
    ({"deadline": 5.0, "mobility": "random", "edges": 1}, "deadline=5 with mobility"),
    ({"deadline": 5.0, "mobility": BackAndForth([99])}, "deadline=5 with mobility"),
    ({"deadline": 5.0, "mobility": "random", "selection": "by_samples"}, "deadline=5 with mobility"),
    ({"deadline": 5.0, "aggregator": "krum"}, "aggregator=Krum with deadline=5"),
]


@pytest.mark.parametrize(("options", "line"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_deadline_that_cannot_be_is_refused(options, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        run(SplitFedV1(), **MIXED | options)


def test_a_price_is_of_all_devices():
    with pytest.raises(ConfigError, match="deadline=5: price has all devices finish"):
        fsl.price(small_model(), small_task(), strategy=SplitFedV1(), deadline=5)


def test_each_deadline_is_of_its_own_kind_of_run():
    with pytest.raises(ConfigError, match=r"deadline=5: these are simulated seconds.*use deployment\.deadline"):
        Federation(run="a", training=Training(deadline=5), placement=Roster("", Terms()))
    with pytest.raises(ConfigError, match="a simulation has deadline=5, in simulated seconds"):
        refuse_without_nodes(deadline=5.0)
