"""Adds exactly in one pass, in C: a kernel that a machine's compiler makes once, when it pays off.

It is kept in this user's cache for the runs after. Without a compiler, or where libraries may not be loaded from there,
sums are added block by block, to the same bits.
"""

import ctypes
import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fsl.c_kernels import KernelSource, NoKernelError, built_kernel, kept_kernel
from fsl.segments.block_sums import add_by_blocks

log = logging.getLogger(__name__)

Adding = Callable[[Tensor, Tensor, Tensor, np.ndarray], None]

_LOADED_AFTER = 1 << 18  # elements, after which a kernel that is there is loaded: it takes a millisecond
_BUILT_AFTER = 1 << 26  # elements, after which one is built: it takes what adding so many block by block takes
_OPTIONS = ("-O2", "-ftree-vectorize", "-ffp-contract=off", "-fno-fast-math")
_WIDER = "-DWIDER"  # with versions for wider vectors, between which the loader chooses; not every system can

_SOURCE = r"""
#include <stdint.h>
#if defined(WIDER) && defined(__x86_64__)
#define VERSIONS __attribute__((target_clones("avx2", "default")))
#else
#define VERSIONS
#endif
#define BLOCK 512 /* columns, which stay in the nearest cache over all rows */

/* high + low += weights (count) * rows (count, size), a row `stride` elements behind the other: Knuth's TwoSum. */
#define ADDING(name, type) \
VERSIONS void name(double *restrict high, double *restrict low, const type *restrict rows, \
                   const double *restrict weights, int64_t count, int64_t stride, int64_t size) { \
  for (int64_t start = 0; start < size; start += BLOCK) { \
    int64_t end = size - start < BLOCK ? size : start + BLOCK; \
    for (int64_t k = 0; k < count; k++) { \
      const type *row = rows + k * stride; \
      const double weight = weights[k]; \
      for (int64_t i = start; i < end; i++) { \
        double now = high[i], term = (double)row[i] * weight, total = now + term, part = total - now; \
        low[i] += (now - (total - part)) + (term - part); \
        high[i] = total; \
      } \
    } \
  } \
}
ADDING(fsl_add_float, float)
ADDING(fsl_add_double, double)
"""


class SumKernel:
    """Returns the kernel once so much was added that it pays off to load it, or to build it."""

    def __init__(self) -> None:
        self._elements = 0
        self._adding: Adding | None = None
        self._looked, self._tried = False, False

    def ready(self, elements: int) -> Adding | None:
        """Count elements that are about to be added; returns what adds them in one pass, where that is at hand."""
        if self._adding is not None or self._tried:
            return self._adding
        self._elements += elements
        if not self._looked and self._elements >= _LOADED_AFTER:
            self._looked = True
            self._adding = kept()
        if self._adding is None and self._elements >= _BUILT_AFTER:
            self._tried = True
            self._adding = built()
        return self._adding


def kept() -> Adding | None:
    """Load the kernel that an earlier process built; None where there is none that can be trusted."""
    return kept_kernel(_kernel(), _bound)


def built() -> Adding | None:
    """Build the kernel and keep it for later processes; None where this machine has no compiler, or it errs."""
    try:
        return built_kernel(_kernel(), _bound)
    except NoKernelError as error:
        log.debug("exact sums are added block by block: %s", error)
        return None


def _kernel() -> KernelSource:
    return KernelSource("sums", _SOURCE, _OPTIONS, (_WIDER,))


def _bound(library: ctypes.CDLL) -> Adding | None:
    """Returns what adds by a library, checked against NumPy's sums; None where it errs."""
    functions = {torch.float32: library.fsl_add_float, torch.float64: library.fsl_add_double}
    for function in functions.values():
        function.argtypes, function.restype = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3, None

    def add(high: Tensor, low: Tensor, rows: Tensor, weights: np.ndarray) -> None:
        places = (high.data_ptr(), low.data_ptr(), rows.data_ptr(), weights.ctypes.data)
        functions[rows.dtype](*places, len(rows), rows.stride(0), rows.shape[1])

    return add if all(_agrees(add, dtype) for dtype in functions) else None


def _agrees(add: Adding, dtype: torch.dtype) -> bool:
    """Whether a kernel adds three rows as NumPy does, to the bit: large and tiny ones, and what is below normal."""
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((3, 1200)) * 10.0 ** draw.integers(-44, 30, (3, 1200))
    given = torch.from_numpy(rows).to(dtype)[:, :1111]  # rows that do not lie behind each other
    weights = np.array([0.1, 3.0, 1e-300])
    (high, low), expected = _some_sums(given.shape[1]), _some_sums(given.shape[1])
    add(torch.from_numpy(high), torch.from_numpy(low), given, weights)
    add_by_blocks(*expected, given.numpy(), weights)
    return all(np.array_equal(a.view(np.int64), b.view(np.int64)) for a, b in zip((high, low), expected))


def _some_sums(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the same sum, float64 (size,), and what its additions have lost so far, at every call."""
    draw = np.random.default_rng(1)
    high = draw.standard_normal(size) * 10.0 ** draw.integers(-300, 30, size)
    return high, high * 2.0**-60
