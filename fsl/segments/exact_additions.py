"""Adds rows to running sums of float64 pairs, and loses nothing that float64 rounds off (Knuth's TwoSum).

All ways here do the same additions in the same order, so that they agree to the bit: one pass in C where a kernel is
at hand, NumPy's calls block by block where none is, torch's on an accelerator.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fsl.segments.block_sums import add_by_blocks
from fsl.segments.sum_kernel import SumKernel

_PAIRED = 1 << 23  # elements that an accelerator adds in pairs at once
_KERNEL = SumKernel()  # of this process


def add_exactly(high: Tensor, low: Tensor, rows: Tensor, weights: Sequence[float]) -> None:
    """Add weights (K,) times rows (K, P), of any floating type, to the pairs of high and low, float64 (P,), in place.

    On an accelerator several rows are added in pairs first, which may move the last bit of `low`.
    """
    rows = rows.detach().to(high.device)
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()  # exact: of half precision, or less
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    if high.device.type != "cpu":
        _add_on_accelerator(high, low, rows, weights)
        return
    weighing = np.asarray(weights, dtype=np.float64)
    add = _KERNEL.ready(rows.numel())
    if add is not None and high.is_contiguous() and low.is_contiguous():
        add(high, low, rows, weighing)
    else:
        add_by_blocks(high.numpy(), low.numpy(), rows.numpy(), weighing)


def _add_on_accelerator(high: Tensor, low: Tensor, rows: Tensor, weights: Sequence[float]) -> None:
    """Add blocks of columns, whose rows are added in pairs, so that kernels are few and large."""
    weighing = torch.tensor(weights, dtype=torch.float64, device=high.device).unsqueeze(1)
    columns = max(1, _PAIRED // max(1, len(rows)))
    for start in range(0, high.numel(), columns):
        here = slice(start, start + columns)
        sums = rows[:, here].double() * weighing
        for total, lost in _in_pairs(sums):
            _two_sum(high[here], low[here], total)
            if lost is not None:
                low[here] += lost


def _in_pairs(sums: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Halve rows (K, P) until one is left, with what was lost; an odd row is given out alone."""
    lost: Tensor | None = None
    while len(sums) > 1:
        if len(sums) % 2:
            yield sums[-1], None if lost is None else lost[-1]
        half = len(sums) // 2
        one, other = sums[:half].clone(), sums[half : 2 * half]
        below = torch.zeros_like(one) if lost is None else lost[:half] + lost[half : 2 * half]
        _two_sum(one, below, other)
        sums, lost = one, below
    yield sums[0], None if lost is None else lost[0]


def _two_sum(high: Tensor, low: Tensor, term: Tensor) -> None:
    """Add a term to pairs, in place, by torch."""
    total = high + term
    part = total - high
    lost = (high - (total - part)) + (term - part)
    low += lost
    high.copy_(total)
