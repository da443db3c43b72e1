"""The predicted request is a sum of its parts, and the best point is what trying all of them finds."""

import math
from dataclasses import replace

import pytest

from fsl.costs import DeviceProfile, LinkProfile
from fsl.errors import ConfigError, SplitError
from fsl.inference.planning import (
    LOCAL,
    REMOTE,
    DevicePower,
    LinkState,
    SplitChoice,
    SplitCosts,
    best_point,
    predicted,
)
from fsl.inference.planning.split_costs import IDENTITY
from fsl.inference.profiles import Encoding, SecondsSpread
from tests.helpers.small_profiles import random_costs, small_costs, small_profile


def by_hand(costs, name, state):
    """Seconds at a point, written out."""
    head = costs.device.point(name).head.seconds.p50
    if name == "output":
        return head
    up = costs.device.point(name).crossing_bytes * 8e-6 / state.up_mbit if state.up_mbit else math.inf
    down = costs.device.point("output").crossing_bytes * 8e-6 / state.down_mbit if state.down_mbit else math.inf
    tail = costs.edge.point(name).tail.seconds.p50 / (1 - state.load)
    return head + up + state.rtt_seconds + state.queue_seconds + tail + down


@pytest.mark.parametrize("mbit", [0.0, 0.01, 0.3, 2.0, 30.0, math.inf])
def test_the_best_point_is_what_brute_force_finds(mbit):
    for seed in range(20):
        costs = random_costs(seed)
        state = LinkState(mbit, 2 * mbit, rtt_seconds=0.01, queue_seconds=0.02 * (seed % 3), load=0.2 * (seed % 4))
        least = min(by_hand(costs, name, state) for name in costs.names)
        found = best_point(costs, state)
        assert found.seconds == pytest.approx(least)
        assert by_hand(costs, found.choice.point, state) == pytest.approx(least)


@pytest.mark.parametrize("seed", range(5))
def test_without_a_link_the_device_computes_everything(seed):
    assert best_point(random_costs(seed), LinkState(0.0, 0.0)).choice == LOCAL


def test_what_has_no_bytes_crosses_without_a_link():
    costs = small_costs(codecs={"nothing": Encoding(factor=0.0)})
    found = predicted(costs, SplitChoice("cut1", "nothing"), LinkState(0.0, 8.0))
    assert (found.up, found.seconds) == (0, pytest.approx(0.01 + 0.019 + 40e-6))


@pytest.mark.parametrize("seed", range(5))
def test_an_infinite_rate_leaves_the_least_sum_of_head_and_tail(seed):
    costs = random_costs(seed)
    sums = [costs.device.point(n).head.seconds.p50 + costs.edge.point(n).tail.seconds.p50 for n in costs.names]
    assert best_point(costs, LinkState(math.inf, math.inf)).seconds == pytest.approx(min(sums))


def test_parts_add_up_to_the_whole():
    codecs = {"half": Encoding(factor=0.5, fixed_bytes=8, encode_seconds=0.001, decode_seconds=0.002)}
    state = LinkState(8.0, 16.0, rtt_seconds=0.03, queue_seconds=0.04, load=0.5)
    found = predicted(small_costs(codecs=codecs), SplitChoice("cut2", "half"), state)
    parts = (
        found.head,
        found.encode,
        found.link,
        found.up,
        found.rtt,
        found.queue,
        found.decode,
        found.tail,
        found.down,
    )
    assert parts == pytest.approx((0.05, 0.001, 0, 40_008 / 1e6, 0.03, 0.04, 0.004, 0.03, 40 / 2e6))
    assert found.seconds == pytest.approx(sum(parts))
    assert (found.spent.up_bytes, found.spent.down_bytes) == (40_008, 40)


def test_a_busy_link_makes_a_request_wait_only_for_what_head_and_encode_leave_of_it():
    costs = small_costs()
    waits = [predicted(costs, SplitChoice("cut2"), LinkState(8, 8, link_seconds=s)).link for s in (0.0, 0.04, 0.25)]
    assert waits == pytest.approx([0, 0, 0.2])
    slow = small_costs(codecs={"slow": Encoding(encode_seconds=0.1)})
    assert predicted(slow, SplitChoice("cut2", "slow"), LinkState(8, 8, link_seconds=0.25)).link == pytest.approx(0.1)
    assert predicted(costs, LOCAL, LinkState(8, 8, link_seconds=9.0, queue_seconds=9.0)).seconds == pytest.approx(0.2)


def test_a_busy_edge_makes_a_request_wait_only_for_what_is_left_when_it_comes():
    costs, states = small_costs(), [LinkState(8, 8, 0.02, 0.5, 0.06, busy) for busy in (0.0, 0.15, 0.25)]
    waits = [predicted(costs, SplitChoice("cut2"), state).queue for state in states]
    assert waits == pytest.approx([0.5, 0.5, 0.5 + 0.25 - (0.06 + 0.08 + 0.01)])  # the link is free after .06 s
    assert predicted(costs, LOCAL, LinkState(8, 8, edge_seconds=9.0)).seconds == pytest.approx(0.2)
    assert predicted(costs, REMOTE, LinkState(0, 0, edge_seconds=math.inf)).seconds == math.inf


def test_the_extremes_are_always_compared():
    costs = small_costs()
    assert best_point(costs, LinkState(1000, 1000), points=["cut3"]).choice == REMOTE
    assert best_point(costs, LinkState(0.0, 0.0), points=["cut3"]).choice == LOCAL
    assert best_point(costs, LinkState(2, 2), points=[]).choice == LOCAL
    assert best_point(costs, LinkState(2, 2)).choice.point == "cut3"


def test_the_input_can_be_sent_in_another_format():
    costs = small_costs(input_formats={"jpeg:75": Encoding(factor=0, fixed_bytes=5000, decode_seconds=0.001)})
    found = predicted(costs, SplitChoice("input", input_format="jpeg:75"), LinkState(1, 1))
    assert (found.spent.up_bytes, found.up, found.decode) == (5000, pytest.approx(0.04), 0.001)


def test_a_request_is_a_batch():
    sizes = (100, 50, 8)
    device, edge = (small_profile((0, 0.1, 0.2), (0.2, 0.1, 0), sizes, batch=4) for _ in range(2))
    codec = Encoding(encode_seconds=0.01, decode_seconds=0.02)
    found = predicted(
        SplitCosts(device=device, edge=edge, codecs={"c": codec}), SplitChoice("cut1", "c"), LinkState(1, 1)
    )
    assert (found.spent.up_bytes, found.spent.down_bytes, found.encode, found.head) == (200, 32, 0.04, 0.1)
    assert found.decode == 0.08


def test_what_all_samples_share_crosses_once_with_a_batch():
    device = small_profile((0, 0.1, 0.2), (0.2, 0.1, 0), (100, 50, 8), batch=4)
    points = [replace(point, crossing_shared_bytes=20) if point.name == "cut1" else point for point in device.points]
    shares = replace(device, points=tuple(points))
    costs = SplitCosts(device=shares, edge=shares, codecs={"half": Encoding(factor=0.5, fixed_bytes=3)})
    sizes = [predicted(costs, SplitChoice("cut1", codec), FREE).spent.up_bytes for codec in ("identity", "half")]
    assert sizes == [4 * 30 + 20, (4 * 30 + 20) / 2 + 4 * 3]


def test_energy_is_that_of_a_device_that_computes_waits_and_sends():
    power = DevicePower(active_watts=10, idle_watts=2, transmit_watts=3, receive_watts=1)
    state = LinkState(8.0, 16.0, rtt_seconds=0.03, queue_seconds=0.04)
    found = predicted(small_costs(power=power), SplitChoice("cut2"), state)
    up, down = 0.08, 40 / 2e6
    waiting = 0.03 + 0.04 + 0.015
    assert found.spent.device_joules == pytest.approx(10 * 0.05 + 2 * (up + down + waiting) + 3 * up + 1 * down)
    assert predicted(small_costs(power=power), LOCAL, state).spent.device_joules == pytest.approx(2.0)
    assert predicted(small_costs(power=power), REMOTE, LinkState(0, 0)).spent.device_joules == math.inf
    assert predicted(small_costs(), LOCAL, state).spent.device_joules is None
    thrifty = small_costs(power=DevicePower(active_watts=10, idle_watts=0, transmit_watts=3, receive_watts=1))
    for wait in ("queue_seconds", "link_seconds", "rtt_seconds"):
        assert predicted(thrifty, REMOTE, LinkState(8.0, 8.0, **{wait: math.inf})).spent.device_joules == math.inf


def test_energy_of_a_codec_is_active_on_the_device_and_idle_while_the_edge_decodes():
    power = DevicePower(active_watts=10, idle_watts=2, transmit_watts=3, receive_watts=1)
    codecs = {"slow": Encoding(encode_seconds=0.5, decode_seconds=0.25)}
    found = [
        predicted(small_costs(power=power, codecs=codecs), SplitChoice("cut2", c), FREE) for c in ("slow", IDENTITY)
    ]
    assert found[0].spent.device_joules - found[1].spent.device_joules == pytest.approx(10 * 0.5 + 2 * 0.25)


def test_power_is_known_where_both_profiles_tell_it():
    device = DeviceProfile("d", 1e9, power_active_watts=5.0, power_idle_watts=1.0)
    link = LinkProfile("l", 1, 1, transmit_watts=0.5, receive_watts=0.25)
    assert DevicePower.of(device, link) == DevicePower(5.0, 1.0, 0.5, 0.25)
    for name in ("transmit_watts", "receive_watts"):
        assert DevicePower.of(device, replace(link, **{name: None})) is None
    for name in ("power_active_watts", "power_idle_watts"):
        assert DevicePower.of(replace(device, **{name: None}), link) is None


@pytest.mark.parametrize("name", ["active_watts", "idle_watts", "transmit_watts", "receive_watts"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_power_that_cannot_be_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        DevicePower(
            **{**dict.fromkeys(("active_watts", "idle_watts", "transmit_watts", "receive_watts"), 1.0), name: value}
        )


def test_identity_costs_nothing_unless_it_was_measured():
    measured = small_costs(codecs={"identity": Encoding(encode_seconds=0.25)})
    assert predicted(small_costs(), SplitChoice("cut1"), FREE).encode == 0
    assert predicted(measured, SplitChoice("cut1"), FREE).encode == 0.25
    assert measured.choices() == small_costs().choices()


def test_profiles_of_different_models_batches_or_points_are_refused():
    args = (0, 0.1, 0.2), (0.2, 0.1, 0), (100, 50, 8)
    mine = small_profile(*args)
    for other, line in (
        (small_profile(*args, digest="other"), "are of different weights"),
        (small_profile(*args, batch=2), "batches of 1, the edge's of 2"),
        (small_profile((0, 0.2), (0.2, 0), (100, 8)), "different points, as cut1"),
    ):
        with pytest.raises(ConfigError, match=line):
            SplitCosts(device=mine, edge=other)


def test_a_choice_that_would_not_count_is_refused():
    for point in ("input", "output"):
        with pytest.raises(ConfigError, match=f"codec='int8': nothing is coded at '{point}'"):
            SplitChoice(point, "int8")
    for point in ("cut1", "output"):
        with pytest.raises(ConfigError, match=f"input_format='jpeg:75': no input crosses at '{point}'"):
            SplitChoice(point, input_format="jpeg:75")


@pytest.mark.parametrize("statistic", ["mean", "p50", "p90", "p99"])
def test_costs_say_which_of_the_measured_seconds_count(statistic):
    spread = SecondsSpread(mean=0.5, p50=0.1, p90=0.2, p99=0.3)
    points = tuple(
        replace(point, head=replace(point.head, seconds=spread), tail=replace(point.tail, seconds=spread))
        for point in small_costs().device.points
    )
    profile = replace(small_costs().device, points=points)
    found = predicted(SplitCosts(device=profile, edge=profile, statistic=statistic), SplitChoice("cut1"), FREE)
    assert (found.head, found.tail) == (getattr(spread, statistic),) * 2


def test_another_statistic_is_refused():
    with pytest.raises(ConfigError, match="statistic='p95': allowed are mean, p50, p90, p99"):
        SplitCosts(device=small_costs().device, edge=small_costs().edge, statistic="p95")


FREE = LinkState(math.inf, math.inf)


def test_what_is_not_known_is_refused():
    costs = small_costs(codecs={"half": Encoding(0.5)})
    with pytest.raises(SplitError, match="point='cut9': it must be one of input, cut1"):
        predicted(costs, SplitChoice("cut9"), LinkState(1, 1))
    with pytest.raises(SplitError, match="point='cut9'"):
        best_point(costs, LinkState(1, 1), points=["cut9"])
    with pytest.raises(ConfigError, match="codec='int8': these costs know half"):
        predicted(costs, SplitChoice("cut1", "int8"), LinkState(1, 1))
    with pytest.raises(ConfigError, match="input_format='jpeg:75': these costs know none"):
        predicted(costs, SplitChoice("input", input_format="jpeg:75"), LinkState(1, 1))


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"up_mbit": -1}, "up_mbit=-1"),
        ({"up_mbit": math.nan}, "up_mbit=nan"),
        ({"rtt_seconds": -1}, "rtt_seconds=-1"),
        ({"queue_seconds": math.nan}, "queue_seconds=nan"),
        ({"link_seconds": math.nan}, "link_seconds=nan"),
        ({"edge_seconds": -1}, "edge_seconds=-1"),
        ({"load": 1.0}, "load=1.0"),
    ],
)
def test_a_link_that_cannot_be_is_refused(state, line):
    with pytest.raises(ConfigError, match=line):
        LinkState(**{"up_mbit": 1, "down_mbit": 1, **state})
