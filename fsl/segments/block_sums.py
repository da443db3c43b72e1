"""Adds exactly on the CPU without a compiler: Knuth's TwoSum by NumPy's calls, block by block."""

import numpy as np

_BLOCK = 1 << 14  # elements; the buffers of one block stay in a core's cache
_AT_ONCE = 1 << 17  # elements of several rows that are weighed at once


def add_by_blocks(high: np.ndarray, low: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> None:
    """Add weights (K,) times rows (K, P) to the pairs of high and low, float64 (P,), in place."""
    size = min(_BLOCK, len(high))
    several = max(1, _AT_ONCE // max(1, size))
    terms = np.empty((min(several, len(rows)), size))
    total, part = np.empty((2, size))
    with np.errstate(all="ignore"):  # what is not finite is refused where it is trained
        for start in range(0, len(high), _BLOCK):
            h, lo = high[start : start + _BLOCK], low[start : start + _BLOCK]
            if len(h) < size:
                terms, total, part = terms[:, : len(h)], total[: len(h)], part[: len(h)]
            for first in range(0, len(rows), several):
                some = rows[first : first + several, start : start + _BLOCK]
                # Rounded before they are added: of float64, as a sum's first one is; of float32 they are exact.
                weighed = np.multiply(some, weights[first : first + several, None], out=terms[: len(some)])
                _add_terms(h, lo, weighed, total, part)


def _add_terms(high: np.ndarray, low: np.ndarray, terms: np.ndarray, other: np.ndarray, part: np.ndarray) -> None:
    """Add one row of terms after another; `other` and `part` are buffers of a row's size."""
    now, after = high, other
    for term in terms:
        np.add(now, term, after)
        np.subtract(after, now, part)  # what of the addend arrived
        np.subtract(term, part, term)  # what of the addend was lost
        np.subtract(after, part, part)  # what of the sum arrived
        np.subtract(now, part, part)  # what of the sum was lost
        np.add(part, term, part)
        np.add(low, part, low)
        now, after = after, now
    if now is not high:
        high[:] = now
