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
    StreamResult,
    clairvoyant_plan,
    poisson_arrivals,
    predicted,
    simulate_requests,
    static_result,
)
from fsl.inference.profiles import Encoding
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
    costs = small_costs(codecs={"slow": Encoding(factor=0.5, encode_seconds=0.03, decode_seconds=0.07)})
    for choice in costs.choices():
        down = RateTrace.constant(0.002)
        alone = stream([3.0], costs=costs, down=down, rtt_seconds=0.02, load=RateTrace.constant(0.5))
        done = simulate_requests(alone, StaticSplit(choice.point, choice.codec)).requests[0]
        state = LinkState(8.0, 0.002, rtt_seconds=0.02, load=0.5)
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


@pytest.mark.parametrize("load", [0.3, 0.7])
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
    simulate_requests(stream([0.0, 0.0, 9.0], up=up, down=RateTrace.constant(4.0), load=load), policy)
    assert [state.up_mbit for state in policy.states] == [8.0, 8.0, 16.0]
    assert [state.down_mbit for state in policy.states] == [4.0, 4.0, 4.0]
    assert [state.load for state in policy.states] == [0.0, 0.0, 0.5]
    assert [state.link_seconds for state in policy.states] == pytest.approx([0, 0.12, 0])
    assert [state.edge_seconds for state in policy.states] == pytest.approx([0, 0.14, 0])
    assert [state.queue_seconds for state in policy.states] == [0, 0, 0]


@pytest.mark.parametrize("load", [0.0, 0.9])
@pytest.mark.parametrize("servers", [1, 2])
def test_predictions_from_what_a_policy_is_told_are_what_becomes_where_nothing_changes(load, servers):
    class Predicts(SplitPolicy):
        name = "predicts"

        def __init__(self, choices):
            self.choices, self.seconds = list(choices), []

        def choose(self, state, now):
            self.seconds.append(predicted(small_costs(), self.choices[0], state).seconds)
            return self.choices.pop(0)

    choices = [small_costs().choices()[place] for place in (0, 2, 3, 0, 4, 1, 3, 2) * 5]
    crowded = stream(
        poisson_arrivals(4.0, 40, seed=0), rtt_seconds=0.02, load=RateTrace.constant(load), servers=servers
    )
    policy = Predicts(choices)
    done = simulate_requests(crowded, policy).requests
    assert policy.seconds == pytest.approx([request.end - request.start for request in done])
    waited = [request.serving - request.sent - 0.01 for request in done if request.spent.up_bytes]
    assert max(waited) > 0.1 or not load


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


@pytest.mark.parametrize("probes", [LinkProbes(), LinkProbes(bytes=100)])
def test_a_probe_that_tells_nothing_is_followed_by_one_of_twice_its_bytes(probes):
    fast = stream([float(second) for second in range(20)], up=RateTrace.constant(800.0))
    done = simulate_requests(fast, DynamicSplit(small_costs()), RateEstimator(), probes)
    assert done.requests[-1].choice.point == "input"
    sent, told = probes.bytes, 0
    while sent < 800e6 / 8 * 0.001:  # too small for the estimator, or quicker than its millisecond
        told, sent = told + sent, 2 * sent
    assert done.probe_bytes == told + sent


def test_probes_of_a_link_that_is_never_slow_stop_growing_and_keep_their_distance():
    endless = stream([float(second) for second in range(60)], up=FAST)
    done = simulate_requests(endless, Local(), RateEstimator(), LinkProbes(bytes=8 << 20, every_seconds=20.0))
    assert done.probe_bytes == (8 + 16 + 16 + 16) * (1 << 20)  # at 0, 1, 21 or 22, and 41 or more seconds


def test_a_request_waits_for_the_probe_in_front_of_it():
    policy = Told()
    served = simulate_requests(stream([0.0]), policy, RateEstimator(), LinkProbes(bytes=50_000)).requests
    assert (policy.states[0].link_seconds, served[0].sending) == pytest.approx((0.05, 0.05))


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
    coded = small_costs(codecs={"half": Encoding(0.5)})
    served = [
        static_result(stream([0.0], costs=coded), SplitChoice("cut1", c)).requests[0] for c in ("half", "identity")
    ]
    assert StreamResult("other codecs", tuple(served)).switches == 1
    assert moved.spread.p50 == pytest.approx(sorted(moved.seconds)[2])


def test_a_device_is_idle_once_while_requests_wait_and_not_while_it_computes():
    power = DevicePower(active_watts=10, idle_watts=2, transmit_watts=3, receive_watts=1)
    crowded = stream([0.0, 0.0, 0.06, 5.0], costs=small_costs(power=power), rtt_seconds=0.2)
    done = simulate_requests(crowded, InTurn("cut2", "cut2", "output", "cut3"))
    requests = done.requests
    seconds = [number / 1e4 for number in range(60_000)]
    computing = [any(r.start <= second < r.computed for r in requests) for second in seconds]
    pending = [any(r.arrival <= second < r.end for r in requests) for second in seconds]
    radio = sum(3 * (r.sent - r.sending) + 1 * r.spent.down_bytes / 1e6 for r in requests)
    by_hand = sum(10 if busy else 2 if waits else 0 for busy, waits in zip(computing, pending)) / 1e4 + radio
    assert done.device_joules == pytest.approx(by_hand, rel=1e-3)
    assert done.device_joules < sum(request.spent.device_joules for request in requests)
    assert static_result(crowded, SplitChoice("cut2")).device_joules is not None
    assert clairvoyant_plan(crowded).result.device_joules is not None


def test_an_answer_that_never_comes_takes_for_ever():
    power = DevicePower(active_watts=10, idle_watts=0, transmit_watts=3, receive_watts=1)
    dead = stream([0.0, 1.0], up=RateTrace.constant(0.0), costs=small_costs(power=power))
    gone = simulate_requests(dead, Remote())
    assert gone.seconds.tolist() == [math.inf, math.inf]
    assert [request.spent.device_joules for request in gone.requests] == [math.inf, math.inf]
    assert gone.device_joules == math.inf
    local = simulate_requests(dead, Local())
    assert (gone.regret(local), gone.regret(gone), local.regret(gone)) == (math.inf, 0.0, -1.0)


@pytest.mark.parametrize("again", ["load", "down"])
def test_a_link_that_dies_ends_a_simulation_whose_other_traces_repeat(again):
    repeats = RateTrace((0.0, 1.0), (0.0, 0.5), repeat_s=2.0)
    gone = simulate_requests(stream([0.0, 1.0], up=RateTrace.constant(0.0), **{again: repeats}), Remote())
    assert gone.seconds.tolist() == [math.inf, math.inf]


def test_regret_is_against_a_result_on_the_same_arrivals():
    one, other = (simulate_requests(stream([0.0, second]), Local()) for second in (1.0, 2.0))
    with pytest.raises(ConfigError, match="best='local': it is of other arrivals"):
        one.regret(other)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"arrivals": []}, "arrivals: give at least one"),
        ({"arrivals": [1.0, 0.5]}, "arrivals"),
        ({"arrivals": [-1.0]}, "arrivals"),
        ({"arrivals": [math.nan]}, "arrivals"),
        ({"arrivals": [0.0, math.inf]}, "arrivals"),
        ({"servers": 0}, "servers=0"),
        ({"rtt_seconds": -1.0}, "rtt_seconds=-1.0"),
        ({"rtt_seconds": math.inf}, "rtt_seconds=inf"),
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
