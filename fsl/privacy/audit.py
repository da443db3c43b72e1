"""What epsilon a run cannot have had: a lower bound from canaries, all in one run.

Steinke, Nasr & Jagielski 2023, "Privacy Auditing with One (1) Training Run". Each of m canaries is put into the data
or left out by a coin; whoever sees the releases then says of r of them which it was. The more guesses are right, the
less private the run can have been.
"""

import math
from collections.abc import Sequence

import numpy as np

from fsl.errors import ConfigError


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The chance, at most, of so many right guesses under (epsilon, delta)-differential privacy (Theorem 5.2)."""
    from scipy.stats import binom

    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, chance))
    steps = np.arange(1, right + 1)
    below = np.cumsum(binom.pmf(right - steps, guesses, chance))
    worst = float((below / steps).max()) if right else 0.0
    return min(1.0, tail + 2 * canaries * delta * worst)


def epsilon_lower_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that so many right guesses speak against, at this confidence; 0 where there is none.

    ConfigError for more right guesses than guesses, or more guesses than canaries.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ConfigError(f"right={right}, guesses={guesses}, canaries={canaries}: each must be at most the next")
    if p_value(canaries, guesses, right, 0.0, delta) > 1 - confidence:
        return 0.0

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, right, epsilon, delta) <= 1 - confidence

    low, high = 0.0, 1.0
    while refuted(high) and high < _MOST:
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def guess(scores: Sequence[float], included: Sequence[bool], guesses: int) -> int:
    """Guess that the highest scores' canaries were included and the lowest ones' were not; how many are right."""
    order = np.argsort(np.asarray(scores), kind="stable")
    truth = np.asarray(included, dtype=bool)[order]
    out, taken = truth[: guesses // 2], truth[len(truth) - (guesses - guesses // 2) :]
    return int((~out).sum() + taken.sum())


_MOST = 64.0
