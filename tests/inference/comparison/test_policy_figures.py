"""Figures of a policy: means and percentiles by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fsl.errors import ConfigError
from fsl.inference import SplitPoints
from fsl.inference.comparison import device_weights, policy_figures
from fsl.inference.planning import (
    LOCAL,
    REMOTE,
    DevicePower,
    RateTrace,
    RequestStream,
    SplitChoice,
    StaticSplit,
    StreamResult,
    poisson_arrivals,
    simulate_requests,
)
from fsl.inference.planning.request_stream import Clocks, serve
from tests.helpers.small_profiles import small_costs


def served(choice, arrivals, rate=1.0):
    stream = RequestStream(
        costs=small_costs(), arrivals=arrivals, up=RateTrace.constant(rate), down=RateTrace.constant(rate)
    )
    clocks, done = Clocks.start(1), []
    for arrival in arrivals:
        request, clocks = serve(stream, arrival, choice, clocks)
        done.append(request)
    return done


def timed(seconds, choice=LOCAL):
    """A result whose requests take so long, one a hundred seconds."""
    (one,) = served(choice, [0.0])
    made = [replace(one, arrival=100.0 * k, end=100.0 * k + each) for k, each in enumerate(seconds)]
    return StreamResult("mine", tuple(made))


def test_percentiles_are_requests_that_were():
    seconds = np.random.default_rng(1).permutation(np.arange(1, 101)) / 100
    figures = policy_figures(timed(seconds), {LOCAL: 0.5}, {LOCAL: {1: 7}}, deadline_seconds=0.25)
    assert (figures.p50, figures.p90, figures.p99) == pytest.approx((0.5, 0.9, 0.99))
    assert (figures.mean, figures.in_time) == pytest.approx((0.505, 0.25))
    assert (figures.quality, figures.encoder_bytes, figures.overloaded) == (0.5, 7, False)


def test_answers_count_as_often_as_their_choice_was_made():
    both = served(REMOTE, [0.0]) + served(LOCAL, [10.0, 20.0])
    figures = policy_figures(
        StreamResult("mine", tuple(both)), {LOCAL: 0.9, REMOTE: 0.6}, {LOCAL: {1: 100}, REMOTE: {}}
    )
    assert figures.quality == pytest.approx(0.8)
    assert figures.up_bytes == pytest.approx(small_costs().parts(REMOTE).up_bytes / 3)
    assert (figures.encoder_bytes, figures.switches) == (100, 1)
    assert figures.choices == {"output": 2, "input": 1}


@pytest.mark.parametrize("deadline", [1.0, np.inf])
def test_what_is_never_answered_is_not_in_time_and_no_sign_of_an_overload(deadline):
    both = served(REMOTE, [0.0], rate=0.0) + served(LOCAL, [10.0])
    result = StreamResult("mine", tuple(both))
    figures = policy_figures(result, {LOCAL: 1.0, REMOTE: 1.0}, {LOCAL: {}, REMOTE: {}}, deadline)
    assert (figures.answered, figures.in_time, figures.overloaded) == (0.5, 0.5, False)
    assert (figures.p99, figures.mean) == (np.inf, np.inf)


def test_the_device_has_what_any_of_the_choices_needs_once():
    """Two ways share a front, and each has an encoder of its own."""
    first, second = (SplitChoice("cut1", f"rate {k}") for k in (0, 1))
    made = served(REMOTE, [0.0, 10.0, 20.0])
    each = [replace(one, choice=choice) for one, choice in zip(made, (first, second, first), strict=True)]
    weights = {first: {1: 100, 2: 7}, second: {1: 100, 3: 5}, LOCAL: {4: 1000}}
    figures = policy_figures(StreamResult("mine", tuple(each)), dict.fromkeys(weights, 1.0), weights)
    assert figures.encoder_bytes == 112


def test_probes_bytes_and_joules_are_means_of_a_request():
    power = DevicePower(2.0, 1.0, 0.0, 0.0)
    made = served(LOCAL, [0.0, 10.0])
    asked = [replace(one, spent=replace(one.spent, device_joules=3.0)) for one in made]
    figures = policy_figures(StreamResult("mine", tuple(asked), 500.0, power), {LOCAL: 1.0}, {LOCAL: {}})
    assert (figures.up_bytes, figures.joules) == (250.0, 3.0)


@pytest.mark.parametrize(("share", "overloaded"), [(0.5, False), (1.5, True)])
def test_requests_that_come_faster_than_they_are_served_are_told(share, overloaded):
    costs = small_costs()
    arrivals = poisson_arrivals(share / costs.parts(LOCAL).head, 400, seed=0)
    stream = RequestStream(costs=costs, arrivals=arrivals, up=RateTrace.constant(1), down=RateTrace.constant(1))
    figures = policy_figures(simulate_requests(stream, StaticSplit("output")), {LOCAL: 1.0}, {LOCAL: {}})
    assert figures.overloaded == overloaded


def test_a_choice_whose_answers_nobody_measured_is_refused():
    with pytest.raises(ConfigError, match="mine chose input as jpeg:5"):
        policy_figures(
            replace(
                timed([1.0]),
                requests=(replace(timed([1.0]).requests[0], choice=SplitChoice("input", input_format="jpeg:5")),),
            ),
            {LOCAL: 1.0},
            {LOCAL: {}},
        )


def test_the_device_has_the_weights_of_its_head_alone():
    points = SplitPoints(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)), torch.randn(3, 5))
    cut, as_bytes = SplitChoice("0"), SplitChoice("input", input_format="uint8")
    found = device_weights(points, [REMOTE, as_bytes, cut, LOCAL])
    first, both = 4 * (40 + 8), 4 * (40 + 8 + 24 + 3)
    assert [sum(found[one].values()) for one in (REMOTE, as_bytes, cut, LOCAL)] == [0, 0, first, both]
    assert found[cut].items() <= found[LOCAL].items()
