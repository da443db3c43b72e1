"""Seconds of exits from measured profiles: stages add up to heads and tails, whichever side computes them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fsl.errors import ConfigError, SplitError
from fsl.inference import SplitPoints
from fsl.inference.exits import ExitModel
from fsl.inference.planning import SplitCosts, profiled_exit_seconds
from fsl.inference.profiles import Encoding, SecondsSpread, measure

ROWS = torch.linspace(-1, 1, 15).view(3, 5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = nn.Sequential()
    for name in ("a", "b", "c", "d"):
        backbone.add_module(name, nn.Linear(5, 5))
    return ExitModel(backbone, {"a": "linear", "c": "linear"}, ROWS)


@pytest.fixture(scope="module")
def costs(model):
    """A device on which a, b, c and d take 1, 2, 4 and 8 s, and an edge ten times as fast."""
    profile = measure(SplitPoints(model.backbone, ROWS, ["a", "b", "c"]), ROWS[:1], repetitions=1, warm_up=0, checks=0)

    def spread(seconds):
        return SecondsSpread(mean=9 * seconds, p50=seconds, p90=seconds, p99=seconds)

    heads = dict(zip(profile.names, (0, 1, 3, 7, 15)))
    points = tuple(
        replace(
            point,
            head=replace(point.head, seconds=spread(heads[point.name])),
            tail=replace(point.tail, seconds=spread(15 - heads[point.name])),
        )
        for point in profile.points
    )
    device = replace(profile, points=points)
    return SplitCosts(device=device, edge=device.faster(10))


@pytest.mark.parametrize(
    ("cut", "stages", "crossing"),
    [
        ("output", (1, 6, 8), 3),
        ("c", (1, 6, 0.8), 2),
        ("b", (1, 2 + 0.4, 0.8), 1),
        ("a", (1, 0.6, 0.8), 1),
        ("input", (0.1, 0.6, 0.8), 0),
    ],
)
def test_stages_take_what_their_layers_take_where_they_run(model, costs, cut, stages, crossing):
    found = profiled_exit_seconds(model, cut, costs)
    assert found.compute.stages == pytest.approx(stages)
    assert (found.crossing, found.crossing_bytes) == (crossing, 0 if cut == "output" else 20)


def test_heads_take_their_multiply_adds_at_the_rate_of_the_backbone_on_their_side(model, costs):
    first, second = model.costs.heads
    assert profiled_exit_seconds(model, "b", costs).compute.heads == pytest.approx(
        (first * 15 / 100, second * 1.5 / 100)
    )
    given = profiled_exit_seconds(model, "b", costs, head_seconds=[0.5, 0.25], predictor_seconds=[0.1, 0.2]).compute
    assert (given.heads, given.predictors) == ((0.5, 0.25), (0.1, 0.2))


def test_rows_that_cross_pay_for_the_round_trip_and_the_codec(model, costs):
    codec = Encoding(factor=0.25, fixed_bytes=3, encode_seconds=0.5, decode_seconds=0.25)
    found = profiled_exit_seconds(model, "a", costs, codec=codec, rtt_seconds=2.0)
    assert (found.crossing_bytes, found.link_s) == (8, 2.75)


def test_the_statistic_is_that_of_the_costs(model, costs):
    found = profiled_exit_seconds(model, "output", replace(costs, statistic="mean"))
    assert found.compute.stages == pytest.approx((9, 54, 72))
    assert found.compute.heads == pytest.approx([macs * 9 * 15 / 100 for macs in model.costs.heads])


def test_profiles_that_do_not_fit_are_refused(model, costs):
    other = replace(costs.device, digest="other")
    with pytest.raises(ConfigError, match="costs: they are of another model"):
        profiled_exit_seconds(model, "a", SplitCosts(device=other, edge=other))
    many = replace(costs.device, batch=4)
    with pytest.raises(ConfigError, match="profiles are of batches of 4; use batch=1"):
        profiled_exit_seconds(model, "a", SplitCosts(device=many, edge=many))
    with pytest.raises(SplitError, match="point='z': it must be one of input, a, b, c, output"):
        profiled_exit_seconds(model, "z", costs)
    few = replace(costs.device, points=tuple(point for point in costs.device.points if point.name != "c"))
    with pytest.raises(SplitError, match="point='c'"):
        profiled_exit_seconds(model, "a", SplitCosts(device=few, edge=few))
    with pytest.raises(ConfigError, match="head_seconds: 1 are given; give one for each of a, c"):
        profiled_exit_seconds(model, "a", costs, head_seconds=[1.0])
    with pytest.raises(ConfigError, match="finite number of at least 0"):
        profiled_exit_seconds(model, "a", costs, head_seconds=[1.0, float("nan")])
