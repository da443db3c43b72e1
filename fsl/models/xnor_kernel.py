"""Multiplies rows of signs by XOR and popcount, in C where this machine has a compiler."""

import ctypes
import logging
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

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
    """Returns the compiled kernel, built in under a second when first asked for; None, with a warning, without one."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        log.warning("binary layers run by NumPy, several times slower: this machine has no C compiler (cc, gcc, clang)")
        return None
    with tempfile.TemporaryDirectory(prefix="fsl-xnor-") as folder:
        source, library = Path(folder) / "xnor.c", Path(folder) / "xnor.so"
        source.write_text(_SOURCE)
        sizes = [f"-DLANES={LANES}", f"-DPIXELS={PIXELS}"]
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", *sizes, "-o", str(library), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
            built = ctypes.CDLL(str(library))  # stays loaded when the file is gone
        except (subprocess.SubprocessError, OSError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            log.warning(
                "binary layers run by NumPy, several times slower: %s cannot build their kernel: %s",
                compiler,
                said[0][:200] if said else type(error).__name__,
            )
            return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    built.fsl_pack.argtypes, built.fsl_pack.restype = [pointer] * 2 + [number] * 8, None
    built.fsl_dots.argtypes, built.fsl_dots.restype = [pointer] * 4 + [number] * 14, None
    return built
