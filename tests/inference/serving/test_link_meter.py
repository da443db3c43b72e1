"""A device knows of its link what its transfers told: rates from bytes and seconds, and no more than these can tell."""

from dataclasses import replace

import pytest
import torch

from fsl.deployment.processes import wait_until
from fsl.inference.planning import DynamicSplit, LinkState, SplitChoice, SplitCosts, SplitPolicy
from fsl.inference.serving import Batching, InferenceDevice, InferenceEdge
from fsl.inference.serving.link_meter import LinkMeter
from tests.helpers.served import batch, served
from tests.helpers.small_profiles import small_profile

MBIT = 125_000  # bytes a second


def test_nothing_is_known_before_something_crossed():
    state = LinkMeter(7.0).state(0)
    assert (state.up_mbit, state.down_mbit, state.rtt_seconds, state.queue_seconds, state.load) == (7.0, 7.0, 0, 0, 0)


def test_a_rate_is_bytes_over_the_seconds_that_no_round_trip_explains():
    meter = LinkMeter(7.0)
    meter.echoed(0.05, 0.0, 0.0)
    meter.crossed(8 * MBIT, 100, 0.05 + 2.0, 0.0)
    assert meter.state(0).up_mbit == pytest.approx(4.0)
    assert meter.state(0).down_mbit == 7.0
    meter.crossed(8 * MBIT, 100, 0.05 + 1.0, 0.0)
    assert meter.state(0).up_mbit == pytest.approx(0.7 * 4.0 + 0.3 * 8.0)
    meter.crossed(100, 3 * MBIT, 0.05 + 1.0, 0.0)
    assert meter.state(0).down_mbit == pytest.approx(3.0)
    assert (meter.up_bytes, meter.down_bytes) == (16 * MBIT + 100, 200 + 3 * MBIT)


@pytest.mark.parametrize(("size", "seconds"), [(4095, 1.0), (1 << 20, 0.0009)])
def test_what_tells_of_latency_or_of_a_loopback_tells_no_rate(size, seconds):
    meter = LinkMeter(7.0)
    meter.crossed(size, 0, seconds, 0.0)
    assert meter.state(0).up_mbit == 7.0


def test_of_the_last_round_trips_the_shortest_counts():
    meter = LinkMeter(7.0)
    for seconds in (0.01, 0.3, *[0.2] * 7):
        meter.echoed(seconds, 0.5, 0.25)
    assert meter.state(0).rtt_seconds == 0.2  # the shortest is nine probes ago
    assert (meter.state(0).queue_seconds, meter.state(0).load) == (0.5, 0.25)


def test_what_waits_to_be_sent_keeps_the_link_busy():
    assert LinkMeter(8.0).state(2 * MBIT).link_seconds == pytest.approx(0.25)


def test_a_policy_is_asked_for_each_question_with_what_is_known():
    class Alternating(SplitPolicy):
        name = "alternating"

        def __init__(self):
            self.seen = []

        def choose(self, state, now):
            self.seen.append((state, now))
            return SplitChoice(["input", "stage1", "output"][len(self.seen) % 3])

    points, policy = served("MLP"), Alternating()
    with InferenceEdge(points) as edge, InferenceDevice(points, [edge.address], policy=policy) as device:
        found = [device.infer(batch()).point for _ in range(6)]
        assert found == ["stage1", "output", "input"] * 2
        assert [now for _, now in policy.seen] == sorted(now for _, now in policy.seen)
        state = device.link_state()
        assert state.up_mbit == 10.0  # a loopback tells no rate
        assert 0 < state.rtt_seconds < 10
        assert device.infer(batch(), point="stage1").point == "stage1"


def test_without_an_edge_there_is_no_link_and_a_policy_says_so():
    with InferenceDevice(served("MLP"), []) as device:
        assert device.link_state() == LinkState(0.0, 0.0)


def test_an_edge_tells_how_long_a_question_would_wait():
    points = served("MLP")
    with (
        InferenceEdge(points, batching=Batching(1000, 3600.0)) as edge,
        InferenceDevice(points, [edge.address]) as device,
    ):
        edge._desk._queue.computed(1, 0.25)  # a row has taken a quarter of a second
        device.submit(batch(rows=4), point="stage1")
        answer = device.submit(batch(rows=4), point="stage1")
        assert not answer.done()
        assert wait_until(lambda: device.link_state().queue_seconds == pytest.approx(2.0), 20, 0.02)


def test_the_point_is_chosen_anew_as_the_link_changes():
    """The device is ten times as slow: with a good link the edge computes all, with a bad one a part, or none."""
    sizes, names = (400_000, 40_000, 40), ("input", "stage1", "output")
    heads, tails = (0.0, 0.2, 1.0), (1.0, 0.8, 0.0)
    device_profile, edge_profile = (
        replace(found, points=tuple(replace(point, name=name) for point, name in zip(found.points, names, strict=True)))
        for found in (
            small_profile([scale * each for each in heads], [scale * each for each in tails], sizes)
            for scale in (1.0, 0.1)
        )
    )
    policy = DynamicSplit(SplitCosts(device=device_profile, edge=edge_profile), dwell_seconds=0.0)
    points, inputs = served("MLP", ["stage1"]), batch()
    with torch.no_grad():
        whole = points.model(inputs)
    with InferenceEdge(points) as edge, InferenceDevice(points, [edge.address], policy=policy) as device:
        found = []
        for mbit in (100.0, 2.0, 0.1, 100.0):
            device.link_state = lambda mbit=mbit: LinkState(mbit, mbit)
            answer = device.infer(inputs)
            assert torch.equal(answer.outputs, whole)
            found.append((answer.point, answer.where))
        assert found == [("input", "edge"), ("stage1", "edge"), ("output", "device"), ("input", "edge")]
        assert policy.switches == 3
