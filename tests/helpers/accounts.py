"""Privacy accounts computed from the definitions, by none of the code that the ledger uses.

RDP: the moment of the sampled Gaussian by quadrature (Mironov, Talwar and Zhang 2019, "Renyi Differential Privacy of
the Sampled Gaussian Mechanism", section 3), turned into epsilon as in Balle et al. 2020, "Hypothesis Testing
Interpretations and Renyi Differential Privacy", theorem 21.
PLD: distributions of the privacy loss on a grid, rounded up, added by FFT (Koskela, Jalko and Honkela 2020, "Computing
Tight Differential Privacy Guarantees Using FFT").
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.stats import norm

ORDERS = [1 + x / 10 for x in range(1, 100)] + [
    float(x) for x in range(12, 64)
]  # the ledger's: an epsilon depends on them
Release = tuple[float, float, int]  # noise multiplier, sample rate, how often


def rdp_epsilon(releases: Sequence[Release], delta: float) -> float:
    """The least epsilon over `ORDERS`."""
    return _least(tuple(releases), delta)


@cache
def _least(releases: tuple[Release, ...], delta: float) -> float:
    return min(_epsilon_at(order, sum(n * _rdp(order, s, q) for s, q, n in releases), delta) for order in ORDERS)


def pld_epsilon(releases: Sequence[Release], delta: float, step: float = 1e-4, reach: float = 60.0) -> float:
    """The larger epsilon of the two directions: a sample leaves, a sample comes; at most `step` a release too large."""
    return max(_pld(releases, delta, step, reach, leaves) for leaves in (True, False))


def _rdp(order: float, multiplier: float, rate: float) -> float:
    if rate == 1:
        return order / (2 * multiplier**2)
    z = np.linspace(-30 * multiplier, order + 30 * multiplier, 60001)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * multiplier**2))
    logs = order * ratio + norm.logpdf(z, scale=multiplier)
    top = logs.max()
    return (top + math.log(np.trapezoid(np.exp(logs - top), z))) / (order - 1)


def _epsilon_at(order: float, rdp: float, delta: float) -> float:
    return rdp - (math.log(delta) + math.log(order)) / (order - 1) + math.log((order - 1) / order)


def _pld(releases: Sequence[Release], delta: float, step: float, reach: float, leaves: bool) -> float:
    half = round(reach / step)
    losses = np.arange(-half, half + 1) * step
    total = np.ones(len(losses) // 2 + 1, dtype=complex)
    infinite = 0.0
    for multiplier, rate, count in releases:
        masses = _masses(losses, multiplier, rate, leaves)
        infinite += count * max(0.0, 1 - masses.sum())
        total = total * np.fft.rfft(np.roll(masses, -half)) ** count
    masses = np.roll(np.fft.irfft(total, len(losses)), half).clip(min=0)
    low, high = 0.0, reach
    while high - low > 1e-6:
        epsilon = (low + high) / 2
        above = losses > epsilon
        found = infinite + float((masses[above] * -np.expm1(epsilon - losses[above])).sum())
        low, high = (epsilon, high) if found > delta else (low, epsilon)
    return high


def _masses(losses: np.ndarray, multiplier: float, rate: float, leaves: bool) -> np.ndarray:
    """The chance of each loss, those between two of the grid's counted as the upper one."""

    def below(loss: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            sampled = np.maximum(np.exp(loss) - (1 - rate), 0.0) / rate
            return multiplier**2 * np.log(sampled) + 0.5  # the observation with this loss

    if leaves:  # the loss of what was observed with the sample: it grows with the observation
        z = below(losses)
        chance = (1 - rate) * norm.cdf(z / multiplier) + rate * norm.cdf((z - 1) / multiplier)
    else:  # of what was observed without it: it shrinks
        chance = norm.sf(below(-losses) / multiplier)
    return np.diff(chance, prepend=0.0)
