"""Computes epsilon of a history of Gaussian releases, by Opacus's accountants."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fsl.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gaussian:
    """So many releases with noise of `noise_multiplier` times the sensitivity, of samples drawn with `sample_rate`."""

    noise_multiplier: float
    sample_rate: float
    releases: int


def combined(multipliers: Sequence[float]) -> float:
    """The noise multiplier of Gaussian releases made together, for who sees them all: (sum of s^-2)^(-1/2)."""
    if 0.0 in multipliers:
        return 0.0
    least = min(multipliers)  # whose inverse square may be beyond float64
    return least / math.sqrt(math.fsum((least / s) ** 2 for s in multipliers))


@lru_cache(maxsize=4096)
def epsilon(history: tuple[Gaussian, ...], delta: float, accountant: str) -> float:
    """The epsilon of these releases together, at least 0; infinite where one has no noise, or nothing bounds them.

    PRV is asked only up to an epsilon of 50 by RDP, whose bound stands beyond: see `accountant_used`.
    """
    steps = [(g.noise_multiplier, g.sample_rate, g.releases) for g in history if g.releases]
    if not steps:
        return 0.0
    if any(multiplier == 0 for multiplier, _, _ in steps):
        return math.inf
    return _spent(tuple(steps), delta, accountant_used(history, delta, accountant))


def accountant_used(history: tuple[Gaussian, ...], delta: float, accountant: str) -> str:
    """Returns the accountant that `epsilon` uses: "rdp" instead of "prv" where PRV would take minutes or overflow.

    PRV convolves over a grid as long as epsilon is large. Both are upper bounds, and such a figure protects nobody.
    """
    steps = tuple((g.noise_multiplier, g.sample_rate, g.releases) for g in history if g.releases)
    if accountant != "prv" or not steps or any(multiplier == 0 for multiplier, _, _ in steps):
        return accountant
    return "prv" if _spent(steps, delta, "rdp") <= _PRV_MOST else "rdp"


@lru_cache(maxsize=4096)
def _spent(steps: tuple[tuple[float, float, int], ...], delta: float, accountant: str) -> float:
    from opacus.accountants import create_accountant  # Opacus takes a while to import

    if accountant == "prv":
        _warn_of_long(sum(releases for _, _, releases in steps) // _LONG)
    account = create_accountant(mechanism=accountant)
    account.history = list(steps)
    try:
        with np.errstate(divide="ignore", over="ignore"):  # PRV takes log(1 - rate)
            found = float(account.get_epsilon(delta=delta))
    except (OverflowError, ZeroDivisionError):  # noise too small for float64
        return math.inf
    return math.inf if math.isnan(found) else max(found, 0.0)


@lru_cache
def _warn_of_long(times: int) -> None:
    """Warn, once per multiple of `_LONG` releases, that PRV is slow."""
    if times:
        log.warning(
            "privacy.accountant=prv over more than %d releases of a sample takes up to minutes each time that it is "
            "asked; privacy.accountant=rdp takes none, and tells a little more epsilon",
            times * _LONG,
        )


def solve(target: float, cost: Callable[[float], float]) -> float:
    """The least noise multiplier whose `cost` (an epsilon) is at most `target`, to 1 in 1,000.

    ConfigError where no noise is enough.
    """
    high = 1.0
    while cost(high) > target:
        high *= 2
        if high > _MOST:
            raise ConfigError(
                f"privacy.dp_sgd.target_epsilon={target}: it cannot be reached; noise_multiplier={_MOST:g} still costs "
                f"{cost(_MOST):.3g}. Ask for a larger epsilon or delta, or choose another accountant"
            )
    low = high / 2 if high > 1 else _LEAST
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost(middle) <= target else (middle, high)
    return high


_PRV_MOST = 50.0  # epsilon by RDP
_LONG = 20_000  # releases
_MOST = float(2**14)
_LEAST = 0.1  # accountants' sums overflow not far below
