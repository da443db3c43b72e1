"""A stream of requests takes what a hand computes, and what queueing theory says of many."""

import math

import pytest

from fsl.errors import ConfigError
from fsl.inference.planning import (
    DevicePower,
    DynamicSplit,
    LinkProbes,
    LinkState,
    Local,
    RateEstimator,
    RateTrace,
    Remote,
    RequestStream,
    SplitChoice,
    SplitCosts,
    SplitPolicy,
    StaticSplit,
    poisson_arrivals,
    predicted,
    simulate_requests,
)
from tests.helpers.small_profiles import small_costs, small_profile

FAST = RateTrace.constant(math.inf)


def stream(arrivals, **options):
    usual = {"costs": small_costs(), "up": RateTrace.constant(8.0), "down": RateTrace.constant(8.0)}
    return RequestStream(arrivals=arrivals, **{**usual, **options})


def queue(service, arrivals, servers=1):
    """A device that computes and sends in no time, and an edge that serves each request so long."""
    profile = small_profile((0.0, 1e9), (service, 0.0), (4, 4))
    costs = SplitCosts(device=profile, edge=profile)
    return RequestStream(costs=costs, arrivals=arrivals, up=FAST, down=FAST, servers=servers)


def test_a_request_that_meets_nobody_takes_what_is_predicted():
    for choice in small_costs().choices():
        alone = stream([3.0], rtt_seconds=0.02, load=RateTrace.constant(0.5))
        done = simulate_requests(alone, StaticSplit(choice.point)).requests[0]
        state = LinkState(8.0, 8.0, rtt_seconds=0.02, load=0.5)
        assert done.seconds == pytest.approx(predicted(alone.costs, choice, state).seconds)


def test_requests_wait_for_device_link_and_edge_in_turn():
    first, second = simulate_requests(stream([0.0, 0.0], rtt_seconds=0.02), StaticSplit("cut2")).requests
    assert (first.start, first.computed, first.sending, first.sent) == pytest.approx((0, 0.05, 0.05, 0.13))
    assert (first.serving, first.served, first.end) == pytest.approx((0.14, 0.155, 0.155 + 40e-6 + 0.01))
    assert (second.start, second.computed, second.sending, second.sent) == pytest.approx((0.05, 0.1, 0.13, 0.21))
    assert second.serving == pytest.approx(0.22)
    slow = simulate_requests(stream([0.0] * 3, up=FAST, load=RateTrace.constant(0.9)), Remote()).requests
    assert [request.served for request in slow] == pytest.approx([0.2, 0.4, 0.6])
    two = simulate_requests(stream([0.0] * 3, up=FAST, load=RateTrace.constant(0.9), servers=2), Remote()).requests
    assert [request.served for request in two] == pytest.approx([0.2, 0.2, 0.4])


class InTurn(SplitPolicy):
    """Chooses these points, one after the other."""

    name = "in turn"

    def __init__(self, *points):
        self.points = list(points)

    def choose(self, state, now):
        return SplitChoice(self.points.pop(0))


def test_a_request_goes_to_the_server_that_is_free_first():
    busy = stream([0.0] * 3, up=FAST, load=RateTrace.constant(0.99), servers=2)
    first, second, third = simulate_requests(busy, InTurn("input", "cut3", "input")).requests
    assert (first.served, second.served) == pytest.approx((2.0, 1.1))
    assert third.serving == pytest.approx(1.1)


def test_local_requests_wait_for_nobody_but_the_device():
    done = simulate_requests(stream([0.0, 0.1], up=RateTrace.constant(0.0)), Local())
    assert done.seconds.tolist() == pytest.approx([0.2, 0.3])
    assert done.up_bytes == 0


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_the_edges_queue_is_that_of_m_d_1(load):
    service = 0.1
    done = simulate_requests(queue(service, poisson_arrivals(load / service, 60_000, seed=1)), Remote())
    waiting = done.mean - service
    assert waiting == pytest.approx(load * service / (2 * (1 - load)), rel=0.06)  # three standard errors


def test_two_servers_wait_less_than_one_that_is_twice_as_fast_serves():
    arrivals = poisson_arrivals(12.0, 5_000, seed=2)
    one, two = (simulate_requests(each, Remote()) for each in (queue(0.1, arrivals, 2), queue(0.05, arrivals, 1)))
    assert one.mean > two.mean  # the fast one is never idle while somebody waits
    assert one.mean - 0.1 < two.mean - 0.05


def test_poisson_arrivals_come_at_their_rate():
    arrivals = poisson_arrivals(50.0, 20_000, seed=0)
    assert arrivals[-1] == pytest.approx(400, rel=0.03)
    assert arrivals == poisson_arrivals(50.0, 20_000, seed=0) != poisson_arrivals(50.0, 20_000, seed=1)


class Told(SplitPolicy):
    """Always remote; writes down what it is told."""

    name = "told"

    def __init__(self, point="input"):
        self.states, self.point = [], point

    def choose(self, state, now):
        self.states.append(state)
        return SplitChoice(self.point)


def test_a_policy_is_told_the_rate_the_load_and_what_waits():
    up = RateTrace((0.0, 1.0), (8.0, 16.0))
    load = RateTrace((0.0, 1.0), (0.0, 0.5))
    policy = Told()
    simulate_requests(stream([0.0, 0.0, 9.0], up=up, load=load), policy)
    assert [state.up_mbit for state in policy.states] == [8.0, 8.0, 16.0]
    assert [state.load for state in policy.states] == [0.0, 0.0, 0.5]
    assert [state.link_seconds for state in policy.states] == pytest.approx([0, 0.12, 0])
    assert [state.queue_seconds for state in policy.states] == pytest.approx([0, 0.14, 0])


def test_an_estimator_knows_only_transfers_that_have_ended():
    policy = Told()
    simulate_requests(stream([0.0, 0.05, 0.2, 9.0], up=RateTrace((0.0, 5.0), (8.0, 80.0))), policy, RateEstimator())
    assert [state.up_mbit for state in policy.states] == pytest.approx([0, 0, 8.0, 8.0])


def test_probes_tell_the_rate_where_nothing_is_sent():
    without, probed = (DynamicSplit(small_costs()) for _ in range(2))
    arrivals = [float(second) for second in range(20)]
    fast = stream(arrivals, up=RateTrace.constant(100.0))
    stuck = simulate_requests(fast, without, RateEstimator())
    free = simulate_requests(fast, probed, RateEstimator(), LinkProbes(bytes=20_000, every_seconds=4.0))
    assert {request.choice.point for request in stuck.requests} == {"output"}
    assert free.requests[-1].choice.point == "input"
    assert (stuck.probe_bytes, free.probe_bytes) == (0, 20_000)
    assert free.up_bytes == 20_000 + sum(request.spent.up_bytes for request in free.requests)
    local = simulate_requests(fast, Local(), RateEstimator(), LinkProbes(bytes=20_000, every_seconds=4.0))
    assert local.probe_bytes == 4 * 20_000  # at 0, 5, 10 and 15 s: four seconds after the last one's end


def test_no_probe_is_sent_while_one_is_under_way():
    slow = stream([float(second) for second in range(12)], up=RateTrace.constant(0.01))
    done = simulate_requests(slow, Local(), RateEstimator(), LinkProbes(bytes=20_000, every_seconds=4.0))
    assert done.probe_bytes == 20_000  # which take 16 s


def test_bytes_energy_and_switches_are_counted():
    power = DevicePower(active_watts=10, idle_watts=2, transmit_watts=3, receive_watts=1)
    costs = small_costs(power=power)
    alone = stream([0.0], costs=costs, rtt_seconds=0.02)
    done = simulate_requests(alone, StaticSplit("cut2"))
    state = LinkState(8.0, 8.0, rtt_seconds=0.02)
    assert done.device_joules == pytest.approx(predicted(costs, SplitChoice("cut2"), state).spent.device_joules)
    assert simulate_requests(stream([0.0]), Local()).device_joules is None
    up = RateTrace((0.0, 10.0, 20.0), (100.0, 0.1, 100.0))
    moved = simulate_requests(stream([0.0, 5.0, 11.0, 12.0, 21.0], up=up), DynamicSplit(costs))
    assert moved.switches == 2
    assert moved.spread.p50 == pytest.approx(sorted(moved.seconds)[2])


def test_an_answer_that_never_comes_takes_for_ever():
    gone = simulate_requests(stream([0.0, 1.0], up=RateTrace.constant(0.0)), Remote())
    assert gone.seconds.tolist() == [math.inf, math.inf]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"arrivals": []}, "arrivals: give at least one"),
        ({"arrivals": [1.0, 0.5]}, "arrivals"),
        ({"arrivals": [-1.0]}, "arrivals"),
        ({"servers": 0}, "servers=0"),
        ({"rtt_seconds": -1.0}, "rtt_seconds=-1.0"),
        ({"load": RateTrace.constant(1.0)}, "load 1.0"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(options, line):
    with pytest.raises(ConfigError, match=line):
        stream(**{"arrivals": [0.0], **options})
    with pytest.raises(ConfigError, match="per_second=0"):
        poisson_arrivals(0, 1, 0)
    with pytest.raises(ConfigError, match="LinkProbes"):
        LinkProbes(bytes=0)
