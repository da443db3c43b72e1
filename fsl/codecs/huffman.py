"""Codes bytes by a stored Huffman table, which never travels."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.codecs.codec import Codec, Payload
from fsl.codecs.huffman_table import HuffmanTable
from fsl.errors import ConfigError, WireError

_MOST = 1 << 40  # that a byte may have been counted


class Huffman(Codec):
    """Lossless: bytes (uint8) travel as codes that are the shorter the more often a byte was seen.

    `frequencies`: how often each of the bytes 0, 1, ... came in data of this kind, as `fit_frequencies` counts; a byte
    beyond the list, or of frequency 0, was never seen, and travels behind an escape code. Both ends have the table, so
    that no byte of it travels. Arrays of other dtypes go as they are.

    Static Huffman coding is that of Datta et al. 2022 (arXiv 2208.11596), whose released code has no escape, and fails
    at a symbol that was never seen.
    """

    name: ClassVar[str] = "huffman"
    lossless: ClassVar[bool] = True
    fixed_size: ClassVar[bool] = False

    @checks_types("huffman.")
    def __init__(self, frequencies: Sequence[int]) -> None:
        self.frequencies = [int(count) for count in frequencies]
        self._table = table_of(self.frequencies)

    def encode(self, values: Tensor) -> Payload:
        """Returns the codes of all bytes (M,), and beside them the values' shape; another dtype's values unchanged."""
        if values.dtype is not torch.uint8:
            return Payload(self.name, (("plain", values),))
        told = torch.empty(0, *values.shape, dtype=torch.uint8)
        return Payload(self.name, (("values", huffman_bytes(values, self._table)), ("shape", told)))

    def decode(self, payload: Payload) -> Tensor:
        """Returns the values as they were."""
        if [name for name, _ in payload.arrays] == ["plain"]:
            (plain,) = payload.unpack(self.name, plain=payload.arrays[0][1].dtype)
            return plain
        (given,) = payload.unpack(self.name, values=torch.uint8)
        return from_huffman_bytes(given, self.check_size(payload.shape, torch.uint8), self._table)


def fit_frequencies(codes: Tensor) -> list[int]:
    """Returns how often each byte comes in codes of any shape, whole numbers from 0 to 255, up to the largest."""
    whole = codes.detach().flatten().to(torch.int64)
    if whole.numel() and not (int(whole.min()) >= 0 and int(whole.max()) <= 255):
        raise ConfigError("frequencies are counted of codes from 0 to 255, and these have others")
    counts: list[int] = torch.bincount(whole).tolist()
    return counts


def table_of(frequencies: Sequence[Any]) -> HuffmanTable:
    """Returns the table of frequencies; ConfigError for what are none."""
    if len(frequencies) > 256 or not all(0 <= count <= _MOST for count in frequencies) or not any(frequencies):
        raise ConfigError(
            f"frequencies={list(frequencies)[:4]!r}...: give up to 256 counts from 0 to {_MOST}, of which one is above "
            "0, as fsl.codecs.fit_frequencies makes them of codes"
        )
    return HuffmanTable(frequencies)


def huffman_bytes(values: Tensor, table: HuffmanTable) -> Tensor:
    """Returns the codes (M,) of bytes of any shape, where these lie."""
    return torch.from_numpy(table.encode(values.contiguous().flatten().cpu().numpy())).to(values.device)


def from_huffman_bytes(given: Tensor, shape: torch.Size, table: HuffmanTable) -> Tensor:
    """Returns the bytes of this shape that codes stand for; WireError where they stand for none."""
    if given.dim() != 1:
        raise WireError(f"codec 'huffman' got codes of shape {tuple(given.shape)}; they are a row of bytes")
    found = table.decode(given.contiguous().cpu().numpy(), shape.numel())
    return torch.from_numpy(found).view(shape).to(given.device)
