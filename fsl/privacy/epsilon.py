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
    if accountant == "prv":
        _warn_of_long(sum(releases for _, _, releases in steps) // _LONG)
    try:
        with np.errstate(divide="ignore", over="ignore"):  # PRV takes log(1 - rate)
            found = _by_rdp(steps, delta) if accountant == "rdp" else _by_another(steps, delta, accountant)
    except (OverflowError, ZeroDivisionError):  # noise too small for float64
        return math.inf
    return math.inf if math.isnan(found) else max(found, 0.0)


def _by_another(steps: Sequence[tuple[float, float, int]], delta: float, accountant: str) -> float:
    from opacus.accountants import create_accountant  # Opacus takes a while to import

    account = create_accountant(mechanism=accountant)
    account.history = list(steps)
    return float(account.get_epsilon(delta=delta))


def _by_rdp(steps: Sequence[tuple[float, float, int]], delta: float) -> float:
    """As Opacus's `RDPAccountant` computes it, which adds up the same releases anew each time that it is asked."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import get_privacy_spent

    rdp = sum(_rdp_of_one(multiplier, rate) * releases for multiplier, rate, releases in steps)
    return float(get_privacy_spent(orders=RDPAccountant.DEFAULT_ALPHAS, rdp=rdp, delta=delta)[0])


@lru_cache(maxsize=4096)
def _rdp_of_one(multiplier: float, rate: float) -> np.ndarray:
    """Returns what one release costs at each of Opacus's orders, which takes most of the time."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    found: np.ndarray = compute_rdp(q=rate, noise_multiplier=multiplier, steps=1, orders=RDPAccountant.DEFAULT_ALPHAS)
    return found


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
    low, high, step = (_LEAST, math.inf), (1.0, cost(1.0)), 4.0  # multipliers, each with its cost
    while high[1] > target:
        if high[0] == _MOST:
            raise ConfigError(
                f"privacy.dp_sgd.target_epsilon={target}: it cannot be reached; noise_multiplier={_MOST:g} still costs "
                f"{high[1]:.3g}. Ask for a larger epsilon or delta, or choose another accountant"
            )
        low, multiplier, step = high, min(_MOST, high[0] * step), step * step
        high = multiplier, cost(multiplier)
    turn = 0
    while high[0] / low[0] > 1.001:
        multiplier = _between(low, high, target, turn)
        found = multiplier, cost(multiplier)
        low, high, turn = (low, found, turn + 1) if found[1] <= target else (found, high, turn + 1)
    return high[0]


def _between(low: tuple[float, float], high: tuple[float, float], target: float, turn: int) -> float:
    """Guess where the cost is the target: it falls almost as a power of the multiplier.

    In turn a little above the guess, a little below it, and in the middle, so that both ends come closer.
    """
    whole = math.log(high[0] / low[0])
    if turn % 3 == 2 or not (math.isfinite(low[1]) and 0 < high[1] < target < low[1]):
        return low[0] * math.exp(whole / 2)
    share = math.log(low[1] / target) / math.log(low[1] / high[1])
    nudge = _NUDGE / whole * (1 if turn % 3 == 0 else -1)
    return low[0] * math.exp(whole * min(0.99, max(0.01, share + nudge)))


_PRV_MOST = 50.0  # epsilon by RDP
_LONG = 20_000  # releases
_MOST = float(2**14)
_LEAST = 0.1  # accountants' sums overflow not far below
_NUDGE = 4e-4  # by its logarithm, how far beside a guess the multiplier lies
