"""Thresholds that follow the bandwidth: the best of a grid at each, and a line through them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.exits.exit_outputs import ExitOutputs
from fsl.inference.exits.exit_seconds import ExitSeconds
from fsl.inference.exits.exit_thresholds import Thresholds

BETAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01)  # the first: all leave; the last: nobody
ETAS = (0.0, 0.1, 0.3, 0.5, 0.7)
_MOST = 200_000  # thresholds of a grid


@dataclass(frozen=True)
class ChosenThresholds:
    """The best thresholds at a bandwidth; `quality` is the accuracy (of numbers minus the loss), `seconds` the mean."""

    mbit: float
    thresholds: Thresholds
    quality: float
    seconds: float


@checks_types()
def choose_thresholds(
    outputs: ExitOutputs,
    seconds: ExitSeconds,
    mbits: Sequence[float],
    max_seconds: float,
    *,
    betas: Sequence[float] = BETAS,
    etas: Sequence[float] | None = None,
) -> tuple[ChosenThresholds, ...]:
    """Returns, for each bandwidth, the thresholds of most quality among those of mean latency at most `max_seconds`.

    Every exit gets each of `betas` and `etas` (None: the usual ones with predictors, else 0). Of equal quality the
    quicker wins. ConfigError where no thresholds are quick enough, with how quick the quickest are.
    """
    if not len(mbits) or not all(mbit > 0 for mbit in mbits) or not len(betas):
        raise ConfigError(f"mbits={list(mbits)}, betas={list(betas)}: give bandwidths above 0, and confidences")
    if math.isnan(max_seconds):
        raise ConfigError(f"max_seconds={max_seconds}: give the seconds that a request may take in the mean")
    tried_etas = ((0.0,) if outputs.scores is None else ETAS) if etas is None else tuple(etas)
    if not tried_etas:
        raise ConfigError("etas=(): give probabilities from 0 to 1, as (0.0,) for no predictors, or leave it out")
    exits = len(outputs.exits)
    count = (len(betas) * len(tried_etas)) ** exits
    if count > _MOST:
        raise ConfigError(f"betas and etas: {count} thresholds for {exits} exits; at most {_MOST}: give fewer of each")
    grid = [_measured(outputs, seconds, Thresholds(*pair)) for pair in _pairs(betas, tried_etas, exits)]
    chosen = []
    for mbit in mbits:
        transfer = seconds.transfer(mbit)
        timed = [(one, one.compute + (one.crossing * transfer if one.crossing else 0.0)) for one in grid]
        allowed = [(one, took) for one, took in timed if took <= max_seconds]
        if not allowed:
            raise ConfigError(
                f"max_seconds={max_seconds:g}: at {mbit:g} Mbit/s the quickest thresholds of the grid take "
                f"{min(took for _, took in timed):.3g} s in the mean; allow more, or lower the betas"
            )
        best, took = max(allowed, key=lambda pair: (pair[0].quality, -pair[1]))
        chosen.append(ChosenThresholds(float(mbit), best.thresholds, best.quality, took))
    return tuple(chosen)


@dataclass(frozen=True)
class ThresholdLine:
    """A threshold as a line over the logarithm of Mbit/s, kept between the lowest and highest that it was fitted to."""

    intercept: float
    slope: float
    low: float
    high: float

    def at(self, mbit: float) -> float:
        """Returns the threshold at a bandwidth."""
        return min(max(self.intercept + self.slope * math.log(mbit), self.low), self.high)


@dataclass(frozen=True)
class ThresholdLines:
    """Thresholds at any bandwidth: a line for each exit's beta and eta.

    Dong et al. 2022 (arXiv 2206.07269) adapt both kinds of thresholds by "a few simple regression models"; that these
    are lines over log bandwidth is fsl's choice. A line smooths over what was chosen at single bandwidths, so what it
    gives may be slower than was allowed: `ExitSeconds.of` tells.
    """

    beta: tuple[ThresholdLine, ...]
    eta: tuple[ThresholdLine, ...]

    @staticmethod
    def through(chosen: Sequence[ChosenThresholds]) -> "ThresholdLines":
        """Fit lines to thresholds that were chosen at several bandwidths, by least squares."""
        if not chosen:
            raise ConfigError("chosen: there are no thresholds to fit lines to; give those of choose_thresholds")
        mbits = [one.mbit for one in chosen]
        beta, eta = (
            tuple(_line(mbits, list(values)) for values in zip(*rows, strict=True))
            for rows in ([one.thresholds.beta for one in chosen], [one.thresholds.eta for one in chosen])
        )
        return ThresholdLines(beta, eta)

    def thresholds_at(self, mbit: float) -> Thresholds:
        """Returns the thresholds at so many Mbit/s; ConfigError for a bandwidth that is not above 0."""
        if not 0 < mbit < math.inf:
            raise ConfigError(f"mbit={mbit}: a bandwidth above 0 Mbit/s")
        return Thresholds(tuple(line.at(mbit) for line in self.beta), tuple(line.at(mbit) for line in self.eta))


@dataclass(frozen=True)
class _Measured:
    thresholds: Thresholds
    quality: float
    compute: float  # seconds in the mean
    crossing: float  # share of rows


def _measured(outputs: ExitOutputs, seconds: ExitSeconds, thresholds: Thresholds) -> _Measured:
    replay = outputs.replay(thresholds)
    compute, crossing = replay.cost(seconds.compute).mean(), seconds.crosses(replay).double().mean()
    return _Measured(thresholds, replay.quality(outputs), float(compute), float(crossing))


def _pairs(
    betas: Sequence[float], etas: Sequence[float], exits: int
) -> "product[tuple[tuple[float, ...], tuple[float, ...]]]":
    return product(product(betas, repeat=exits), product(etas, repeat=exits))


def _line(mbits: Sequence[float], values: Sequence[float]) -> ThresholdLine:
    low, high = min(values), max(values)
    if low == high or len(set(mbits)) < 2:
        return ThresholdLine(sum(values) / len(values), 0.0, low, high)
    slope, intercept = np.polyfit(np.log(mbits), values, 1)
    return ThresholdLine(float(intercept), float(slope), low, high)
