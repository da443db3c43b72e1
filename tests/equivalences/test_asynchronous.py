"""Asynchronous rounds: a function of their settings in simulation, and of the order of arrival over the wire."""

import json
from dataclasses import replace

import pytest
import torch
from fsl.strategies import AsyncSL, SplitFedV2, SplitStrategy, VanillaSL

import fsl
from fsl.codecs import Float16
from fsl.costs import DeviceLoad, DeviceProfile, LinkProfile, SegmentCost, Serving, round_cost
from fsl.costs.round_cost import arrival_orders
from fsl.errors import ConfigError, RunError
from fsl.mobility import RandomMobility
from fsl.objective import CrossEntropy
from fsl.round import asynchronous_cohort
from fsl.segments.states import Layout, State
from fsl.split.cutting import split
from fsl.trainers import Asynchronous
from fsl.trainers.as_they_come import mixed
from tests.helpers.runs import ADAM, KEPT, assert_same_bits, assert_same_run, optimizers, run
from tests.helpers.small import small_model, small_task
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

UNEQUAL = ["pi3", "pi4", "phone", "laptop"]  # of four devices on two edges: 0 and 2, 1 and 3
MANY = {"model": small_model("batch", 0.3), "devices": 4, "edges": 2, "optimizer": ADAM, "device_profile": UNEQUAL}


@optimizers
def test_with_one_device_it_is_vanilla_split_learning(optimizer):
    options = {"model": small_model("batch", 0.3), "devices": 1, "optimizer": optimizer, "local_epochs": 2}
    vanilla, other = run(VanillaSL(), **options), run(AsyncSL(), **options)
    for segment in vanilla.states:
        assert_same_bits(vanilla.states[segment], other.states[segment])
    for one, two in zip(vanilla.metrics, other.metrics, strict=True):
        added = {"merges": 1, "staleness_mean": 0.0, "staleness_max": 0}
        assert {**one, **added} | {"seconds": 0} == two | {"seconds": 0}


@pytest.mark.parametrize("merges", [1, 2, "until_slowest"])
def test_any_number_of_nodes_and_nodes_elsewhere_compute_the_same(merges, elsewhere):
    one = run(AsyncSL(merges=merges), **MANY)
    assert_same_run(one, run(AsyncSL(merges=merges), nodes=3, **MANY))
    assert_same_run(one, run(AsyncSL(merges=merges), backend=elsewhere, nodes=2, **MANY))


def test_the_order_is_that_of_the_clock_that_gives_the_rounds_time():
    """Predicted before the round from shapes and codecs, and priced after it from what was sent."""
    orders, seconds = [], []

    class Seen(AsyncSL):
        def _ordered(self, round, cohorts):
            found = super()._ordered(round, cohorts)
            costs, homes = self.federation.costs, {task.device: c.edge for c in cohorts for task in c.devices}
            serving = fsl.costs.serving_of(Asynchronous())
            seconds.append(costs.round(costs.predicted(homes, serving, "merged"), serving, self._clock).seconds)
            orders.append([cohort.arrivals for cohort in found])
            return found

    found = run(Seen(), allowed=("tests",), up=Float16, **MANY)
    assert [row["sim_seconds"] for row in found.metrics] == seconds
    assert orders[0] == [(2, 0, 2, 0, -3, -1), (3, 1, 3, 1, -4, -2)]


def test_the_clock_by_hand():
    """A sample takes device 0 2 s forward and 4 s back, device 1 half of it, and the edge 3 s; links take no time."""
    segments = (SegmentCost("front", "device", 2.0, 4.0), SegmentCost("back", "edge", 1.0, 2.0))
    devices, link = {0: DeviceProfile("slow", 1.0), 1: DeviceProfile("fast", 2.0)}, LinkProfile("none", 1.0, 1.0)
    loads = [DeviceLoad(device, 0, 2, 2, up_bytes=0, down_bytes=0, model_bytes=0) for device in (0, 1)]
    hardware = (segments, devices, dict.fromkeys(devices, link), {0: DeviceProfile("edge", 1.0, slots=2)})
    serving = Serving("arrival")

    def order(again):
        return arrival_orders(loads, again, serving, *hardware)[0]

    # Uploads at 1 and 2, served until 4 and 7; at 7 and 13, until 10 and 16; fronts at 12 and 20.
    assert order(lambda device, merged, waited_for: False) == (1, 0, 1, -2, 0, -1)
    # The fast one goes on at 12: uploads at 13, together with the slow one's, and at 22; its second front at 27.
    assert order(lambda device, merged, waited_for: waited_for) == (1, 0, 1, -2, 0, 1, -1, 1, -2)
    cost = round_cost(loads, serving, *hardware)
    assert [device.seconds for device in cost.devices] == [20, 12]
    twice = round_cost([loads[0], replace(loads[1], steps=4, examples=4, merges=2)], serving, *hardware)
    assert [device.seconds for device in twice.devices] == [20, 27]


def test_a_link_that_slows_down_in_the_middle_of_the_run_changes_the_order():
    fast, slow = LinkProfile("even", 1.0, 1.0), LinkProfile("falling", 1.1, 1.1, trace=((0.5, 0.01),))
    orders = []

    class Seen(AsyncSL):
        def _ordered(self, round, cohorts):
            found = super()._ordered(round, cohorts)
            orders.append(found[0].arrivals)
            return found

    run(Seen(), devices=2, rounds=4, link_profile=[fast, slow], allowed=("tests",))
    assert orders[0][0] == 1
    assert orders[-1] != orders[0]


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        ({"staleness": "constant"}, [1, 1, 1, 1]),
        ({"staleness": "constant", "alpha": 0.6}, [0.6, 0.6, 0.6, 0.6]),
        ({"staleness": "polynomial"}, [1, 2**-0.5, 3**-0.5, 0.5]),
        ({"staleness": "polynomial", "a": 1, "alpha": 0.5}, [0.5, 0.25, 0.5 / 3, 0.125]),
        ({"staleness": "hinge", "b": 1}, [1, 1, 1 / 11, 1 / 21]),
        ({"staleness": "hinge", "a": 0.5, "b": 0}, [1, 1 / 1.5, 0.5, 1 / 2.5]),
    ],
)
def test_weights_are_those_of_fedasync(rule, weights):
    trainer = Asynchronous(**rule)
    assert [trainer.weight(staleness) for staleness in range(4)] == pytest.approx(weights, rel=1e-15)


def test_a_front_that_weighs_all_is_taken_to_the_bit():
    layout = Layout(small_model("batch"))
    one, other = layout.capture(), layout.capture()
    for flat in other.flats.values():
        flat += 1
    taken = mixed(one, other, 1.0)
    assert all(torch.equal(taken.flats[dtype], flat) for dtype, flat in other.flats.items())
    half = layout.unpack(mixed(one, other, 0.5))
    assert torch.allclose(half["conv.0.bias"], layout.unpack(one)["conv.0.bias"] + 0.5)
    assert half["conv.1.num_batches_tracked"] == 1  # the larger


def test_polynomial_weights_with_a_of_one_are_the_mean_of_all_fronts(monkeypatch):
    """The k-th front weighs 1/k."""
    fronts = []

    def seen(front, theirs, weight):
        fronts.append(theirs.clone())
        return mixed(front, theirs, weight)

    monkeypatch.setattr(asynchronous_cohort, "mixed", seen)
    found = run(AsyncSL(a=1.0), devices=4, rounds=1)
    assert found.metrics[0]["staleness_max"] == 3
    layout = Layout(split(small_model(), "pool")["front"])
    mean = layout.unpack(State({k: sum(f.flats[k] for f in fronts) / 4 for k in fronts[0].flats}))
    for name, tensor in found.states["front"].items():
        assert torch.allclose(tensor, mean[name], atol=1e-6)


def test_passes_of_fast_devices_fill_the_time_of_the_slowest():
    row, once = (run(AsyncSL(merges=m), rounds=1, **MANY).metrics[0] for m in ("until_slowest", 1))
    assert row["merges"] > once["merges"] == 4
    assert row["examples"] > once["examples"] == 96
    assert row["model_bytes"] * once["merges"] == once["model_bytes"] * row["merges"]


def test_nobody_waits_so_a_round_is_shorter():
    row, lockstep, turns = (run(s, rounds=1, **MANY).metrics[0] for s in (AsyncSL(), SplitFedV2(), VanillaSL()))
    assert row["sim_seconds"] < lockstep["sim_seconds"] < turns["sim_seconds"]
    assert row["up_bytes"] == lockstep["up_bytes"]


def test_stopped_and_resumed_equals_never_stopped(tmp_path):
    options = {**MANY, "optimizer": KEPT}
    whole = run(AsyncSL(merges=2), rounds=3, **options)
    run(AsyncSL(merges=2), rounds=1, out=tmp_path / "run", **options)
    assert_same_run(whole, run(AsyncSL(merges=2), rounds=3, out=tmp_path / "run", resume=True, **options))


def test_it_costs_what_its_price_says():
    options = {"device_profile": UNEQUAL, "devices": 4, "edges": 2, "batch_size": 16}
    row = run(AsyncSL(), rounds=1, device_profile=UNEQUAL, devices=4, edges=2).metrics[0]
    (found,) = fsl.price(small_model(), small_task(), strategy=AsyncSL(), cuts=["pool"], **options)
    assert (found.sim_seconds, found.up_bytes, found.down_bytes, found.model_bytes) == tuple(
        row[key] for key in ("sim_seconds", "up_bytes", "down_bytes", "model_bytes")
    )
    with pytest.raises(ConfigError, match="merges=2: price has each device"):
        fsl.price(small_model(), small_task(), strategy=AsyncSL(merges=2), cuts=["pool"], **options)


ROWS = [list(range(24)), list(range(24, 44)), list(range(44, 68))]  # device 1 has a last batch of four


class Bursts(CrossEntropy):
    """Diverges on a batch of four rows."""

    def loss(self, outputs, targets):
        found = super().loss(outputs, targets)
        return found * float("nan") if len(targets) == 4 else found


def test_a_device_that_diverges_is_lost_and_the_others_go_on():
    found = run(AsyncSL(), devices=3, rounds=2, partition=ROWS, objective=Bursts(), allowed=("tests",), batch_size=8)
    assert [set(row["lost"]) for row in found.metrics] == [{"1"}, {"1"}]
    assert all((row["devices"], row["merges"]) == (2, 2) for row in found.metrics)


@pytest.mark.parametrize(
    ("strategy", "options", "line"),
    [
        (AsyncSL(), {"privacy": "labels"}, "privacy: how often a device trains"),
        (AsyncSL(), {"cut": ("pool", "conv2")}, "AsyncSL trains only a front and a back"),
        (AsyncSL(), {"mobility": RandomMobility(p=1.0), "edges": 2}, "devices of AsyncSL cannot move"),
        (AsyncSL(), {"aggregator": "median"}, "AsyncSL averages nothing over devices"),
        (AsyncSL(replay="nowhere"), {}, "replay=nowhere: it is no run's folder"),
    ],
)
def test_what_does_not_go_together_is_refused(strategy, options, line):
    with pytest.raises(ConfigError, match=line):
        run(strategy, **options)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"staleness": "linear"}, "staleness='linear': allowed are constant, polynomial, hinge"),
        ({"a": 0}, "a=0: how fast"),
        ({"b": -1}, "b=-1: the staleness"),
        ({"alpha": 1.5}, "alpha=1.5: what a front"),
        ({"merges": 0}, "merges=0: a whole number from 1, or until_slowest"),
        ({"merges": 2, "replay": "run"}, "in a recorded round each device merged once"),
    ],
)
def test_wrong_options_are_refused_before_a_run(options, line):
    with pytest.raises(ConfigError, match=line):
        AsyncSL(**options)


def test_merged_fronts_go_with_asynchronous_trainers_alone():
    class Half(SplitStrategy):
        fronts = "averaged"

        def trainer(self, round):
            return fsl.Spec(self.path(Asynchronous))

    with pytest.raises(ConfigError, match=r"use fsl\.strategies\.AsyncSL, or other fronts"):
        run(Half())


# Over the wire.


def test_a_federation_is_repeated_from_its_order_of_arrival(tmp_path):
    rows = [list(range(a, b)) for a, b in ((0, 36), (36, 72), (72, 84), (84, 96))]  # so 2 and 3 finish before 0 and 1
    options = {**MANY, "batch_size": 4, "optimizer": KEPT, "partition": rows}
    wired = run(AsyncSL(), backend=Wired(folder=tmp_path / "nodes"), out=tmp_path / "run", **options)
    again = run(AsyncSL(replay=tmp_path / "run"), nodes=2, **options)
    for segment in wired.states:
        assert_same_bits(wired.states[segment], again.states[segment])
    ignored = {"seconds", "lost", "arrivals"}
    for row, repeated in zip(wired.metrics, again.metrics, strict=True):
        assert {k: v for k, v in row.items() if k not in ignored} == {
            k: v for k, v in repeated.items() if k != "seconds"
        }
        assert row["lost"] == {}
        assert [sorted(order) for order in row["arrivals"].values()] == [
            [-3, -1, *[0] * 9, *[2] * 3],
            [-4, -2, *[1] * 9, *[3] * 3],
        ]
        assert [[n for n in order if n < 0] for order in row["arrivals"].values()] == [[-3, -1], [-4, -2]]


def test_a_lost_device_is_lost_again_and_what_it_taught_the_back_stays(tmp_path):
    options = {"devices": 3, "partition": ROWS, "objective": Bursts(), "allowed": ("tests",), "batch_size": 8}
    backend = Wired(folder=tmp_path / "nodes", edges=1)
    wired = run(AsyncSL(), backend=backend, out=tmp_path / "run", **options)
    assert [set(row["lost"]) for row in wired.metrics] == [{"1"}, {"1"}]
    again = run(AsyncSL(replay=tmp_path / "run"), **options)
    for segment in wired.states:
        assert_same_bits(wired.states[segment], again.states[segment])


@pytest.mark.parametrize(
    ("strategy", "line"),
    [
        (AsyncSL(merges=2), "in a real federation a device merges its front once"),
        (AsyncSL(replay="run"), "in a real federation uploads are taken as they come"),
    ],
)
def test_what_a_real_federation_cannot_do_is_refused(strategy, line, tmp_path):
    with pytest.raises(ConfigError, match=line):
        run(strategy, backend=Wired(folder=tmp_path))


def test_an_edge_that_tells_another_order_loses_its_devices(tmp_path, monkeypatch):
    from fsl.deployment.node.work_done import Work

    remarks = Work.remarks

    def lies(self):
        found = remarks(self)
        if "arrivals" in found:
            found["arrivals"] = json.dumps([*json.loads(found["arrivals"]), 7])
        return found

    monkeypatch.setattr(Work, "remarks", lies)
    with pytest.raises(RunError, match="the order in which uploads came, as it tells it, is not one of its devices"):
        run(AsyncSL(), devices=2, backend=Wired(folder=tmp_path, edges=1))


def test_a_record_without_an_order_is_refused(tmp_path):
    run(SplitFedV2(), rounds=1, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="its rows have no order of arrival"):
        run(AsyncSL(replay=tmp_path / "run"))
