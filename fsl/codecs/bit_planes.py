"""Whole numbers in as many bits as their neighbours need: blocks of 256, each with a width of its own, in bit planes.

A block whose zeros are worth it sends a bit for each number that says whether it is one, and only the others, less 1.
A block of zeros sends nothing but its kind. A block with negative numbers sends 2n, and -2n - 1 of a negative n.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fsl.errors import WireError

BLOCK = 256
PART = 1 << 18  # numbers that are coded at once: what this takes of memory beside the result
LARGEST = (1 << 29) - 1  # absolute value of a number
_MASKED, _SIGNED = 1 << 5, 1 << 6  # of a block's kind; its lower five bits are the width


def parts(count: int) -> Iterator[slice]:
    """Yields where each part of so many numbers lies."""
    return (slice(start, min(start + PART, count)) for start in range(0, count, PART))


def encode_part(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the kinds (blocks,) and the packed bits, both uint8, of whole numbers (n,) int32.

    n is a multiple of `BLOCK`, and no number is larger than `LARGEST` in absolute value.
    """
    codes = numbers.view(-1, BLOCK)
    signed = codes.amin(1) < 0
    if bool(signed.any()):
        codes = torch.where(signed[:, None], (codes << 1) ^ (codes >> 31), codes)
    largest, there = codes.amax(1), codes > 0
    plain, less = _width(largest), _width((largest - 1).clamp_(min=0))
    masked = there.sum(1) * less + BLOCK < plain * BLOCK
    kinds = torch.where(masked, less + _MASKED, plain) + _SIGNED * signed
    forms, planes = kinds & ~_SIGNED, [numbers.new_empty(0, dtype=torch.uint8)]
    for form in forms.unique().tolist():
        rows = forms == form
        some = codes[rows].flatten()
        if form & _MASKED:
            others = there[rows].flatten()
            planes.append(packed_bits(others))
            some = _chosen(some, others) - 1
        width = form & ~_MASKED
        some = some.to(torch.uint8) if width <= 8 else some
        planes += [packed_bits((some >> place) & 1) for place in range(width)]
    return kinds.to(torch.uint8), torch.cat(planes)


def decode_part(kinds: Tensor, bits: "Planes") -> Tensor:
    """Returns whole numbers (blocks * `BLOCK`,) int32; WireError where bits are missing."""
    forms = kinds & (_SIGNED - 1)
    codes = torch.zeros(len(kinds), BLOCK, dtype=torch.int32, device=kinds.device)
    for form in forms.unique().tolist():
        rows, width = forms == form, form & ~_MASKED
        count = int(rows.sum()) * BLOCK
        if form & _MASKED:
            others = bits.take(count).bool()
            some = torch.zeros(count, dtype=torch.int32, device=kinds.device)
            some[others] = bits.numbers(int(others.sum()), width) + 1
        else:
            some = bits.numbers(count, width)
        codes[rows] = some.view(-1, BLOCK)
    signed = (kinds & _SIGNED) > 0
    if bool(signed.any()):
        codes = torch.where(signed[:, None], (codes >> 1) ^ -(codes & 1), codes)
    return codes.flatten()


class Planes:
    """Reads planes of bits one after another, each from a byte's beginning."""

    def __init__(self, packed: Tensor):
        self._packed, self._place = packed, 0

    def take(self, count: int) -> Tensor:
        """Returns the next bits (count,) uint8; WireError where there are no more."""
        start, self._place = self._place, self._place + (count + 7) // 8
        if self._place > len(self._packed):
            raise WireError("whole numbers in bit planes end before their last bits")
        return unpacked_bits(self._packed[start : self._place])[:count]

    def numbers(self, count: int, width: int) -> Tensor:
        """Returns the numbers (count,) int32 of the next `width` planes."""
        found = torch.zeros(count, dtype=torch.uint8 if width <= 8 else torch.int32, device=self._packed.device)
        for place in range(width):
            found |= self.take(count).to(found.dtype) << place
        return found.int()

    def refuse_more(self) -> None:
        """WireError where bits are left."""
        if self._place != len(self._packed):
            raise WireError(f"whole numbers in bit planes have {len(self._packed) - self._place} bytes too many")


def _width(largest: Tensor) -> Tensor:
    """Returns the bits that whole numbers up to these need."""
    return torch.frexp(largest.double()).exponent


def _chosen(numbers: Tensor, mask: Tensor) -> Tensor:
    if numbers.device.type == "cpu":
        return torch.from_numpy(numbers.numpy()[mask.numpy()])  # in two thirds of torch's time
    return numbers[mask]


def packed_bits(bits: Tensor) -> Tensor:
    """Returns eight of these bits a byte, the first one highest, with zeros at the end."""
    if bits.device.type == "cpu":
        return torch.from_numpy(np.packbits(bits.numpy()))
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % 8)).view(-1, 8)
    return (padded << torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpacked_bits(packed: Tensor) -> Tensor:
    """Returns the bits (8 * bytes,) uint8 of bytes."""
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy()))
    return ((packed[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)) & 1).flatten()
