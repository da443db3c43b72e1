"""Computes means over runs, their spread and 95 % intervals, and tests of differences."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

Kind = Literal["score", "amount", "share", "difference of shares"]


@dataclass(frozen=True)
class Spread:
    """A mean of `count` values, their sample standard deviation, and the mean's 95 % interval from `low` to `high`.

    One value has no spread: `std`, `low` and `high` are None.
    """

    count: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None], kind: Kind = "score") -> "Spread | None":
        """Compute the spread of known, finite values; None without any.

        The interval is Student's t; for a share it is t on the logit scale (delta method), so it stays within 0 and 1.
        It is cut at 0 for amounts (bytes, seconds), and at 1 for differences of shares.
        """
        known = [value for value in values if value is not None and math.isfinite(value)]
        if len(known) < 2:
            return cls(1, known[0]) if known else None
        from scipy.stats import t  # takes a second to import

        mean, std = fmean(known), stdev(known)
        half = float(t.ppf(0.975, len(known) - 1)) * std / math.sqrt(len(known))
        return cls(len(known), mean, std, *_interval(mean, half, kind))


def paired_p(differences: Sequence[float]) -> float | None:
    """Returns the two-sided p-value of a paired t-test of these differences against 0.

    None for fewer than two differences, or equal ones other than 0, which have no spread.
    """
    if len(differences) < 2:
        return None
    if stdev(differences) == 0:
        return 1.0 if differences[0] == 0 else None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Correct several p-values (Holm 1979); None stays None, and does not count."""
    order = sorted((value, i) for i, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, i) in enumerate(order):
        largest = max(largest, min(1.0, value * (len(order) - rank)))
        corrected[i] = largest
    return corrected


def _interval(mean: float, half: float, kind: Kind) -> tuple[float, float]:
    if kind == "share" and 0 < mean < 1 and half > 0:
        middle, reach = math.log(mean / (1 - mean)), half / (mean * (1 - mean))
        return _expit(middle - reach), _expit(middle + reach)
    low, high = {"score": (-math.inf, math.inf), "amount": (0.0, math.inf), "share": (0.0, 1.0)}.get(kind, (-1.0, 1.0))
    return max(mean - half, low), min(mean + half, high)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
