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


def distinguished(scores: Sequence[float], others: Sequence[float], delta: float, confidence: float = 0.95) -> float:
    """The epsilon that runs must at least have had, by an attack's scores on runs with a sample and on `others`.

    The threshold is fixed on the first half of either; on the second, the rates of true and of false alarms have
    Clopper-Pearson bounds at this confidence (each side half of what is left). 0 where the attack shows nothing.
    """
    halves = [np.split(np.asarray(each, dtype=np.float64), [len(each) // 2]) for each in (scores, others)]
    (first, second), (other_first, other_second) = halves
    best = max(np.unique(np.concatenate([first, other_first])), key=lambda t: _bound(first, other_first, t, delta, 0.5))
    return max(0.0, _bound(second, other_second, float(best), delta, confidence))


def _bound(scores: np.ndarray, others: np.ndarray, threshold: float, delta: float, confidence: float) -> float:
    from scipy.stats import beta

    side = (1 - confidence) / 2
    right, wrong = int((scores >= threshold).sum()), int((others >= threshold).sum())
    least = float(beta.ppf(side, right, len(scores) - right + 1)) if right else 0.0
    most = float(beta.ppf(1 - side, wrong + 1, len(others) - wrong)) if wrong < len(others) else 1.0
    return math.log((least - delta) / most) if least > delta else -math.inf
