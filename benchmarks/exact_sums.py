"""What adding a device's state to an exact sum takes: `python -m benchmarks.exact_sums [--out FILE]`.

Three ways take turns in one process: PyTorch's calls on blocks, as fsl had them at first, NumPy's calls, and the kernel
that a C compiler makes. One state at a time, and 8 stacked; medians, and the median of the ratios of each turn.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsl.segments.block_sums import add_by_blocks
from fsl.segments.sum_kernel import built, kept

SIZES, AT_ONCE, TURNS, BLOCK = (1_000, 100_000, 1_000_000), (1, 8), 40, 1 << 14


def by_torch(high: Tensor, low: Tensor, rows: Tensor, weights: np.ndarray) -> None:
    size = min(BLOCK, high.numel())
    for values, weight in zip(rows, weights.tolist()):
        buffers = torch.empty(3, size, dtype=high.dtype)
        for start in range(0, high.numel(), BLOCK):
            h, lo, v = (t[start : start + BLOCK] for t in (high, low, values))
            term, total, part = buffers[:, : h.numel()]
            term.copy_(v).mul_(weight)
            torch.add(h, term, out=total)
            torch.sub(total, h, out=part)
            torch.sub(part, term, out=term)
            torch.sub(total, part, out=part)
            torch.sub(h, part, out=part)
            lo.add_(part.sub_(term))
            h.copy_(total)


def by_numpy(high: Tensor, low: Tensor, rows: Tensor, weights: np.ndarray) -> None:
    add_by_blocks(high.numpy(), low.numpy(), rows.numpy(), weights)


def measured(size: int, at_once: int) -> dict[str, float | int]:
    ways: dict[str, Callable[[Tensor, Tensor, Tensor, np.ndarray], None]] = {"torch": by_torch, "numpy": by_numpy}
    if (kernel := kept() or built()) is not None:
        ways["compiled"] = kernel
    rows, weights = torch.randn(at_once, size), np.linspace(1.0, 60.0, at_once)
    sums = {name: torch.ones(2, size, dtype=torch.float64) for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            started = time.perf_counter()
            way(sums[name][0], sums[name][1], rows, weights)
            seconds[name].append((time.perf_counter() - started) / at_once)
    assert all(torch.equal(found, sums["torch"]) for found in sums.values())
    found: dict[str, float | int] = {"size": size, "at_once": at_once}
    for name, took in seconds.items():
        found[f"{name}_us"] = statistics.median(took) * 1e6
        found[f"{name}_times_as_fast"] = statistics.median(a / b for a, b in zip(seconds["torch"], took))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rows = [measured(size, at_once) for size in SIZES for at_once in AT_ONCE]
    print(" ".join(f"{key:>24}" for key in rows[0]))
    for row in rows:
        print(" ".join(f"{value:24.1f}" if isinstance(value, float) else f"{value:24}" for value in row.values()))
    if out is not None:
        out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
