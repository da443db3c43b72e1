"""Compares where to divide a model at several rates: the best point, both extremes, and the input as an image."""

from collections.abc import Sequence
from dataclasses import dataclass

from fsl.simulations.image_formats import RAW

from fsl.costs import LinkProfile
from fsl.inference.planning import (
    LOCAL,
    REMOTE,
    LinkState,
    Prediction,
    SplitChoice,
    SplitCosts,
    best_of,
    predicted,
)
from fsl.inference.split_points import INPUT


@dataclass(frozen=True)
class RateRow:
    """What a request takes at a rate: at the best point, at both extremes, and with the input in each known format."""

    mbit: float
    best: Prediction
    remote: Prediction
    local: Prediction
    images: dict[str, Prediction]


def compare(costs: SplitCosts, rates: Sequence[float], link: LinkProfile) -> list[RateRow]:
    """Compare at rates that hold both ways, with the latency of a link and an idle edge.

    The best is that of all points, with the image as it is at "input", too; JPEG and WebP would change answers.
    """
    exact = [SplitChoice(INPUT, input_format=name) for name in costs.input_formats if name == RAW]
    choices = (*costs.choices(), *exact)
    rows = []
    for mbit in rates:
        state = LinkState(up_mbit=mbit, down_mbit=mbit, rtt_seconds=2 * link.latency_s)
        images = {name: predicted(costs, SplitChoice(INPUT, input_format=name), state) for name in costs.input_formats}
        extremes = predicted(costs, REMOTE, state), predicted(costs, LOCAL, state)
        rows.append(RateRow(mbit, best_of(costs, choices, state), *extremes, images))
    return rows
