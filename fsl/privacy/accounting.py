"""What releases cost: epsilon by Opacus's accountants."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fsl.errors import ConfigError


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
    return math.fsum(s**-2 for s in multipliers) ** -0.5


@lru_cache(maxsize=4096)
def epsilon(history: tuple[Gaussian, ...], delta: float, accountant: str) -> float:
    """The epsilon of these releases together; infinite where one has no noise."""
    steps = [(g.noise_multiplier, g.sample_rate, g.releases) for g in history if g.releases]
    if not steps:
        return 0.0
    if any(multiplier == 0 for multiplier, _, _ in steps):
        return math.inf
    from opacus.accountants import create_accountant  # Opacus takes a while to import

    account = create_accountant(mechanism=accountant)
    account.history = steps
    with np.errstate(divide="ignore"):  # PRV takes log(1 - rate)
        return float(account.get_epsilon(delta=delta))


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


_MOST = float(2**14)
_LEAST = 0.1  # accountants' sums overflow not far below
