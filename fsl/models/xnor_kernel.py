"""Multiplies rows of signs by XOR and popcount, in C where this machine has a compiler."""

import ctypes
import logging
from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

from fsl.c_kernels import KernelSource, NoKernelError, built_kernel, kept_kernel

log = logging.getLogger(__name__)

LANES, PIXELS = 32, 4  # outputs, and places, that the kernel counts at once; a row of weights has a multiple of LANES

_SOURCE = r"""
#include <stdint.h>
#include <string.h>

/* Signs of x (batch, channels, height, width) as bits: words (batch, height + top + bottom, width + left + right,
   ceil(channels / 64)), 1 for a value of 0 or more, and for each channel of the pixels around. */
void fsl_pack(const float *x, uint64_t *words, int64_t batch, int64_t channels, int64_t height, int64_t width,
              int64_t left, int64_t right, int64_t top, int64_t bottom) {
  int64_t depth = (channels + 63) / 64, across = width + left + right, down = height + top + bottom;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t y = 0; y < down; y++) {
      uint64_t *row = words + (b * down + y) * across * depth;
      int inside = y >= top && y < top + height;
      for (int64_t k = 0; k < depth; k++) {
        int64_t some = channels - 64 * k < 64 ? channels - 64 * k : 64;
        uint64_t full = some == 64 ? ~(uint64_t)0 : ((uint64_t)1 << some) - 1;
        for (int64_t i = 0; i < across; i++)
          row[i * depth + k] = inside && i >= left && i < left + width ? 0 : full;
        for (int64_t c = 0; inside && c < some; c++) {
          const float *from = x + ((b * channels + 64 * k + c) * height + y - top) * width;
          uint64_t *to = row + left * depth + k;
          for (int64_t i = 0; i < width; i++) to[i * depth] |= (uint64_t)(from[i] >= 0) << c;
        }
      }
    }
}

/* For each place and output, count - 2 * popcount(words XOR weights): out (batch, outputs, tall, wide). Weights lie as
   (kernel height, kernel width, depth, outputs rounded up to LANES). */
void fsl_dots(const uint64_t *words, const uint64_t *weights, float *out, uint64_t *patch, int64_t batch, int64_t down,
              int64_t across, int64_t depth, int64_t outputs, int64_t kh, int64_t kw, int64_t sh, int64_t sw,
              int64_t dh, int64_t dw, int64_t tall, int64_t wide, int64_t count) {
  int64_t length = kh * kw * depth, lanes = (outputs + LANES - 1) / LANES * LANES;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t y = 0; y < tall; y++)
      for (int64_t x = 0; x < wide; x += PIXELS) {
        int64_t some = wide - x < PIXELS ? wide - x : PIXELS;
        for (int64_t p = 0; p < some; p++) {
          uint64_t *to = patch + p;
          for (int64_t i = 0; i < kh; i++)
            for (int64_t j = 0; j < kw; j++) {
              const uint64_t *from = words + ((b * down + y * sh + i * dh) * across + (x + p) * sw + j * dw) * depth;
              for (int64_t k = 0; k < depth; k++, to += PIXELS) *to = from[k];
            }
        }
        for (int64_t o = 0; o < outputs; o += LANES) {
          uint64_t differ[PIXELS][LANES] = {{0}};
          for (int64_t t = 0; t < length; t++) {
            const uint64_t *row = weights + t * lanes + o;
            for (int p = 0; p < PIXELS; p++)
              for (int l = 0; l < LANES; l++) differ[p][l] += __builtin_popcountll(patch[t * PIXELS + p] ^ row[l]);
          }
          int64_t last = outputs - o < LANES ? outputs - o : LANES;
          for (int64_t l = 0; l < last; l++)
            for (int64_t p = 0; p < some; p++)
              out[((b * outputs + o + l) * tall + y) * wide + x + p] = (float)(count - 2 * (int64_t)differ[p][l]);
        }
      }
}
"""


@cache
def kernel() -> ctypes.CDLL | None:
    """Returns the compiled kernel, which this user's first process builds in under a second; None without one.

    Without one, a warning says so once.
    """
    source = KernelSource("xnor", _SOURCE, ("-O3", f"-DLANES={LANES}", f"-DPIXELS={PIXELS}"), native=True)
    try:
        return kept_kernel(source, _bound) or built_kernel(source, _bound)
    except NoKernelError as error:
        log.warning("binary layers run by NumPy, several times slower: %s", error)
        return None


def _bound(library: ctypes.CDLL) -> ctypes.CDLL | None:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.fsl_pack.argtypes, library.fsl_pack.restype = [pointer] * 2 + [number] * 8, None
    library.fsl_dots.argtypes, library.fsl_dots.restype = [pointer] * 4 + [number] * 14, None
    return library if _agrees(library) else None


def _agrees(library: ctypes.CDLL) -> bool:
    """Whether a library multiplies signs as torch's convolution does: of more than a word, more than LANES outputs."""
    draw = np.random.default_rng(0)
    given = draw.standard_normal((2, 70, 5, 7), dtype=np.float32)
    given[draw.random(given.shape) < 0.1] = 0.0
    weights = draw.choice([-1.0, 1.0], (LANES + 1, 70, 3, 2)).astype(np.float32)
    signs = F.pad(torch.from_numpy(np.where(given >= 0, np.float32(1), np.float32(-1))), (1, 2, 2, 1), value=1.0)
    expected = F.conv2d(signs, torch.from_numpy(weights), stride=(1, 2), dilation=(2, 1))
    bits = np.zeros((3, 2, 2 * LANES, 128), dtype=bool)  # kernel height and width, outputs, channels
    bits[:, :, : LANES + 1, :70] = weights.transpose(2, 3, 0, 1) > 0
    rows = np.ascontiguousarray(np.packbits(bits, axis=-1, bitorder="little").view(np.uint64).swapaxes(2, 3))
    words, patch = np.empty((2, 8, 10, 2), dtype=np.uint64), np.zeros(3 * 2 * 2 * PIXELS, dtype=np.uint64)
    found = np.empty(expected.shape, dtype=np.float32)
    library.fsl_pack(given.ctypes.data, words.ctypes.data, 2, 70, 5, 7, 1, 2, 2, 1)
    pointers = (array.ctypes.data for array in (words, rows, found, patch))
    library.fsl_dots(*pointers, 2, 8, 10, 2, LANES + 1, 3, 2, 1, 2, 2, 1, *found.shape[2:], 70 * 3 * 2)
    return np.array_equal(found, expected.numpy())
