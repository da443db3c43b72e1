"""Who knows the whole trace is never worse than a static choice, and exact plans are what brute force finds."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from fsl.errors import ConfigError
from fsl.inference.planning import (
    DynamicSplit,
    RateTrace,
    RequestStream,
    SplitChoice,
    clairvoyant_plan,
    poisson_arrivals,
    simulate_requests,
    static_result,
)
from fsl.inference.planning.request_stream import Clocks, serve
from fsl.inference.profiles import Encoding
from tests.helpers.small_profiles import random_costs, small_costs

COSTS = small_costs()


def jumpy(seed, requests=40, per_second=4.0, servers=1):
    generator = np.random.default_rng(seed)
    seconds = tuple(float(second) for second in range(60))
    up = RateTrace(seconds, tuple(float(rate) for rate in np.exp(generator.normal(1.0, 1.5, 60))))
    load = RateTrace(seconds, tuple(float(share) for share in generator.random(60) * 0.9))
    arrivals = poisson_arrivals(per_second, requests, seed)
    down = RateTrace.constant(20.0)
    return RequestStream(costs=COSTS, arrivals=arrivals, up=up, down=down, rtt_seconds=0.02, load=load, servers=servers)


def by_hand(stream, choices):
    clocks, total = Clocks.start(stream.servers), 0.0
    for arrival, choice in zip(stream.arrivals, choices, strict=True):
        request, clocks = serve(stream, arrival, choice, clocks)
        total += request.seconds
    return total / len(choices)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("servers", [1, 2])
def test_an_exact_plan_is_what_brute_force_finds(seed, servers):
    stream = jumpy(seed, requests=5, per_second=10.0, servers=servers)
    least = min(by_hand(stream, choices) for choices in product(COSTS.choices(), repeat=5))
    plan = clairvoyant_plan(stream, width=1000)
    assert plan.exact
    assert plan.result.mean == pytest.approx(least)
    assert by_hand(stream, [request.choice for request in plan.result.requests]) == pytest.approx(least)


@pytest.mark.parametrize("seed", [1, 14, 81])
def test_a_plan_keeps_what_leaves_the_link_free_for_others(seed):
    generator, costs = np.random.default_rng(seed), random_costs(seed, points=6)
    arrivals = tuple(sorted(float(second) for second in generator.random(5) * 0.5))
    rates = tuple(float(rate) for rate in np.exp(generator.normal(0.5, 1.2, 10)))
    up, busy = RateTrace(tuple(map(float, range(10))), rates), RateTrace.constant(0.9)
    down = RateTrace.constant(20.0)
    stream = RequestStream(costs=costs, arrivals=arrivals, up=up, down=down, servers=3, load=busy)
    least = min(by_hand(stream, choices) for choices in product(costs.choices(), repeat=5))
    assert clairvoyant_plan(stream, width=100_000).result.mean == pytest.approx(least)


def test_a_plan_keeps_what_leaves_servers_free_for_others():
    generator, costs = np.random.default_rng(179), random_costs(179, points=5)
    arrivals = tuple(sorted(float(second) for second in generator.random(5) * 0.3))
    up, down = (RateTrace.constant(rate) for rate in (float(np.exp(generator.normal(3.5, 1.0))), 20.0))
    busy = RateTrace.constant(0.97)
    stream = RequestStream(costs=costs, arrivals=arrivals, up=up, down=down, servers=2, load=busy)
    least = min(by_hand(stream, choices) for choices in product(costs.choices(), repeat=5))
    assert clairvoyant_plan(stream, width=100_000).result.mean == pytest.approx(least)


@pytest.mark.parametrize(
    "worse", [{"encode_seconds": 1.0, "factor": 0.5}, {"decode_seconds": 1.0, "factor": 0.5}, {"factor": 3.0}]
)
def test_a_choice_that_takes_more_of_one_thing_beats_no_other(worse):
    costs = small_costs(codecs={"worse": Encoding(**worse)})
    stream = replace(jumpy(0), arrivals=(0.0,), costs=costs, up=RateTrace.constant(10.0))
    choices = [SplitChoice("cut2", "worse"), SplitChoice("cut2")]
    assert clairvoyant_plan(stream, choices).result.requests[0].choice == SplitChoice("cut2")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_plan_that_calls_itself_exact_is(seed, width):
    stream = jumpy(seed, requests=12, per_second=8.0)
    best, plan = clairvoyant_plan(stream, width=10_000), clairvoyant_plan(stream, width=width)
    assert best.exact
    assert not plan.exact or plan.result.mean == pytest.approx(best.result.mean)


def test_one_partial_plan_is_enough_where_requests_never_meet():
    stream = replace(jumpy(0), arrivals=tuple(100.0 * number for number in range(5)), up=RateTrace.constant(8.0))
    assert clairvoyant_plan(stream, width=1).exact


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("width", [1, 4])
def test_a_plan_is_never_worse_than_the_best_static_choice(seed, width):
    stream = jumpy(seed)
    plan = clairvoyant_plan(stream, width=width).result
    statics = [static_result(stream, choice).mean for choice in COSTS.choices()]
    assert plan.mean <= min(statics) + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_an_online_policy_has_no_negative_regret_against_an_exact_plan(seed):
    stream = jumpy(seed, requests=30, per_second=2.0)
    plan = clairvoyant_plan(stream, width=1000)
    assert plan.exact
    online = simulate_requests(stream, DynamicSplit(COSTS))
    assert online.regret(plan.result) >= -1e-12
    assert plan.result.regret(plan.result) == 0


def test_an_online_policy_can_be_worse_than_the_best_static_choice():
    up = RateTrace(tuple(float(s) for s in range(40)), tuple(100.0 if s % 2 else 0.5 for s in range(40)))
    arrivals = tuple(second + 0.999 for second in range(1, 39, 2))  # a fast link, gone as soon as it is used
    stream = RequestStream(costs=COSTS, arrivals=arrivals, up=up, down=RateTrace.constant(20.0))
    online = simulate_requests(stream, DynamicSplit(COSTS))
    assert online.mean > min(static_result(stream, choice).mean for choice in COSTS.choices())


def test_a_plan_may_be_made_of_some_choices_alone():
    stream = jumpy(0)
    only = [SplitChoice("cut2"), SplitChoice("cut3")]
    plan = clairvoyant_plan(stream, only).result
    assert {request.choice for request in plan.requests} <= set(only)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="width=0"):
        clairvoyant_plan(jumpy(0), width=0)
    with pytest.raises(ConfigError, match=r"choices=\[\]"):
        clairvoyant_plan(jumpy(0), [])
