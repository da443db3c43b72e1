"""Whole numbers as symbols of a small alphabet: near zero one each, farther out one an octave, and an offset in it."""

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]

_REACH = 32  # numbers from -32 to 31 have a symbol of their own
_FIRST, _LAST = 6, 24  # bits of a number in the first octave (32..63), and in the last
ZERO = _LAST - _FIRST + 1 + _REACH  # the symbol of 0; symbols are in the order of their numbers
SYMBOLS = 2 * ZERO
LARGEST = (1 << _LAST) - 1


def symbols_of(codes: Codes) -> tuple[Codes, Codes]:
    """Returns the symbols of numbers (N,) from -LARGEST - 1 to LARGEST, and the offsets of those that share one."""
    sizes = np.where(codes < 0, ~codes, codes)
    bits = np.frexp(sizes.astype(np.float64))[1]
    places = np.where(sizes < _REACH, sizes, _REACH + bits - _FIRST)
    symbols = np.where(codes < 0, ZERO - 1 - places, ZERO + places).astype(np.int32)
    beyond = sizes >= _REACH
    return symbols, (sizes[beyond] - (1 << (bits[beyond] - 1))).astype(np.int32)


def octaves_of(symbols: Codes) -> Codes:
    """Returns the first number of the octave of each symbol that has one, by size, which is as well its length."""
    places = np.where(symbols < ZERO, ZERO - 1 - symbols, symbols - ZERO)
    octaves: Codes = (1 << (places[places >= _REACH] - _REACH + _FIRST - 1)).astype(np.int32)
    return octaves


def codes_of(symbols: Codes, offsets: Codes) -> Codes:
    """Returns the numbers of symbols (N,), from the offsets of those that share one."""
    sizes = np.where(symbols < ZERO, ZERO - 1 - symbols, symbols - ZERO).astype(np.int32)
    sizes[sizes >= _REACH] = octaves_of(symbols) + offsets
    return np.where(symbols < ZERO, ~sizes, sizes)
