"""A bottleneck whose codes are trained to be few bits, and travel as whole numbers by a range coder."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.codecs.code_symbols import LARGEST, SYMBOLS, ZERO, codes_of, octaves_of, symbols_of
from fsl.codecs.codec import Payload, pack
from fsl.codecs.entropic_modules import entropic_modules
from fsl.codecs.learned import Learned
from fsl.codecs.places import channel_axis, refuse_more, refuse_shape
from fsl.codecs.range_coding import (
    MOST_WEIGHT,
    TOTAL,
    Ints,
    RangeReader,
    RangeWriter,
    Symbols,
    bits_of,
    frequencies,
    of_levels,
    to_levels,
)
from fsl.errors import ConfigError, RunError, WireError

_MOST_CHANNELS = 1024
_COUNT = 16  # what one symbol adds to what is remembered
_AT_FIRST = np.array([max(1, (4 * _COUNT) >> (abs(v) + 1)) for v in range(-ZERO, ZERO)], dtype=np.int64)


class Entropic(Learned):
    """An entropic bottleneck: encoder, rounding and range coder on the device; range decoder and decoder at the edge.

    The loss is the task's plus `beta` times the bits a sample that a factorised prior with learned cumulative
    distributions expects (`fsl.codecs.factorised_prior`). What travels is rounded in training, too: gradients go
    straight through the rounding, and the rate alone is taken of codes with uniform noise (Minnen & Singh 2020,
    "Channel-wise autoregressive entropy models", arXiv 2007.08739, mixed quantization).

    The prior shapes codes in training; it does not travel, since it would take as many bytes as the codes' own table,
    which is never worse. A channel's table is either made from the codes of the session's steps before, which both ends
    count, or stands in the payload, where that is shorter. Tables couple the rows of a batch, so that no privacy by
    sample takes it. RunError for codes that are not finite, or beyond 2^24.

    Matsubara et al. 2022, "SC2 Benchmark: Supervised Compression for Split Computing" (arXiv 2203.08875), entropic
    student; layers and tables are ours.
    """

    name: ClassVar[str] = "entropic"
    rowwise: ClassVar[bool] = False
    stateful: ClassVar[bool] = True
    fixed_size: ClassVar[bool] = False
    coded: ClassVar[bool] = True

    @checks_types("entropic.")
    def __init__(self, channels: int = 8, hidden: int = 32, stride: int = 2, beta: float = 1e-3) -> None:
        if not 1 <= channels <= _MOST_CHANNELS:
            raise ConfigError(f"channels={channels!r}: how many codes a place has, 1 to {_MOST_CHANNELS}")
        if hidden < 1:
            raise ConfigError(f"hidden={hidden!r}: channels between the layers of encoder and decoder, 1 or more")
        if stride < 1:
            raise ConfigError(f"stride={stride!r}: places of an image's side that become one, 1 or more")
        if not 0 <= beta < float("inf"):
            raise ConfigError(f"beta={beta!r}: what a bit a sample adds to the loss, 0 or more")
        self.channels, self.hidden, self.stride, self.beta = channels, hidden, stride, beta
        self._counts = torch.zeros(channels, SYMBOLS, dtype=torch.int64)

    def modules(self, shape: torch.Size) -> tuple[nn.Module, nn.Module]:
        """Returns encoder and decoder for images (B, C, H, W), features (B, D) or tokens (B, T, D)."""
        refuse_shape(self.name, shape)
        refuse_more(self.channels, self.stride, shape)
        return entropic_modules(shape, self.channels, self.hidden, self.stride, self.beta)

    def refuse_unfit(self, shape: torch.Size) -> None:
        """ConfigError for codes of another number of channels."""
        if len(shape) not in (2, 3, 4) or shape[channel_axis(len(shape))] != self.channels:
            raise ConfigError(f"channels={self.channels}: codes of shape {tuple(shape)} have another number")

    def state(self) -> dict[str, Tensor]:
        """Returns how often each symbol of each channel came lately."""
        return {"counts": self._counts}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; WireError where it cannot be this codec's."""
        counts = state.get("counts")
        if counts is None or len(state) > 1 or (counts.shape, counts.dtype) != (self._counts.shape, torch.int64):
            raise WireError(f"codec 'entropic' takes counts of {self.channels} channels as its state")
        if not bool(((counts >= 0) & (counts <= MOST_WEIGHT)).all()):
            raise WireError("codec 'entropic' got counts as its state that no session has")
        self._counts = counts.clone()

    def encode(self, values: Tensor) -> Payload:
        """Returns the words of the range coder, and beside them tables and codes out of reach; rounds the codes."""
        self.refuse_unfit(values.shape)
        codes = values.detach().movedim(channel_axis(values.dim()), 0).reshape(self.channels, -1).cpu().double().round()
        if codes.numel() and not float(codes.abs().max()) <= LARGEST:
            raise RunError("codec entropic got codes beyond 2^24; training has diverged: lower the learning rate")
        writer, heads = RangeWriter(), list[bytes]()
        told, counts = np.zeros(self.channels, dtype=bool), np.zeros(self._counts.shape, dtype=np.int64)
        for channel, (row, table) in enumerate(zip(codes.numpy().astype(np.int32), self._remembered())):
            symbols, offsets = symbols_of(row)
            counts[channel] = _counted(symbols)
            head, first, own = _told_table(counts[channel]) if len(row) else (b"", 0, table)
            shorter = 8 * len(head) + bits_of(counts[channel, first : first + len(own)], own)
            if shorter < bits_of(counts[channel], table):
                told[channel] = True
                heads.append(head)
                writer.write(symbols - np.int32(first), own)
            else:
                writer.write(symbols, table)
            writer.write_below(offsets, octaves_of(symbols))
        self._remember(counts)
        beside = np.packbits(told).tobytes() + b"".join(heads)
        place = values.device
        arrays = ("values", _tensor(writer.words()).to(place)), ("beside", _tensor(beside).to(place))
        return pack(self.name, values.dtype, *arrays, shape=values.shape)

    def decode(self, payload: Payload) -> Tensor:
        """Returns the codes (B, ...), whole numbers; WireError for what no encoder sends.

        Not all changed bytes are noticed: some stand for other codes of this shape, which are within 2^24.
        """
        words, beside = payload.unpack(self.name, values=torch.uint8, beside=torch.uint8)
        shape = self.check_size(payload.shape, payload.dtype)
        axis = channel_axis(len(shape))
        if len(shape) not in (2, 3, 4) or shape[axis] != self.channels or words.dim() != 1 or beside.dim() != 1:
            raise WireError(f"codec 'entropic' got codes of shape {tuple(shape)}, and has {self.channels} channels")
        reader, tables = RangeReader(words.cpu().numpy().tobytes()), self._tables(beside.cpu().numpy().tobytes())
        others = shape[:axis] + shape[axis + 1 :]
        codes = np.empty((self.channels, others.numel()), dtype=np.int32)
        counts = np.zeros(self._counts.shape, dtype=np.int64)
        for row, count, (first, table) in zip(codes, counts, tables):
            symbols = reader.read(len(row), table) + np.int32(first)
            count[:] = _counted(symbols)
            row[:] = codes_of(symbols, reader.read_below(octaves_of(symbols)))
        reader.close()
        if codes.size and max(codes.max(), -codes.min()) > torch.finfo(payload.dtype).max:
            raise WireError(f"codec 'entropic' got codes that are beyond {payload.dtype}")
        self._remember(counts)
        found = torch.from_numpy(codes).view(self.channels, *others).movedim(0, axis)
        return found.to(payload.dtype).contiguous().to(words.device)

    def _tables(self, beside: bytes) -> list[tuple[int, Ints]]:
        """Returns the first symbol and the table of each channel; WireError for bytes that tell none."""
        place = -(-self.channels // 8)
        told = np.unpackbits(np.frombuffer(beside[:place], np.uint8))[: self.channels]
        tables = [(0, table) for table in self._remembered()]
        for channel in np.flatnonzero(told):
            length, first = (*beside[place : place + 2], 0, 0)[:2]
            levels = np.frombuffer(beside[place + 2 : place + 2 + length * (length > 1)], np.uint8)
            if not 1 <= length <= SYMBOLS - first or (length > 1 and len(levels) < length):
                raise WireError(f"codec 'entropic' got a table of {length} symbols from {first} on")
            tables[channel] = first, frequencies(of_levels(levels)) if length > 1 else np.array([TOTAL])
            place += 2 + len(levels)
        if len(told) < self.channels or place != len(beside):
            raise WireError(f"codec 'entropic' got {len(beside)} bytes of tables for {self.channels} channels")
        return tables

    def _remembered(self) -> Ints:
        """Returns a table (K,) for each channel, from the symbols that came."""
        return frequencies(self._counts.numpy() + _AT_FIRST)

    def _remember(self, counts: Ints) -> None:
        """Add a step's symbols; what came before counts three quarters of what it did."""
        before = self._counts.numpy()
        self._counts = torch.from_numpy(before - before // 4 + _COUNT * counts)  # so never beyond MOST_WEIGHT


def _counted(symbols: Symbols) -> Ints:
    """Returns how often each symbol comes (K,)."""
    return np.bincount(symbols, minlength=SYMBOLS)


def _told_table(counts: Ints) -> tuple[bytes, int, Ints]:
    """Returns a table for symbols that are counted (K,), as bytes, its first symbol, and its frequencies."""
    first, last = np.flatnonzero(counts)[[0, -1]]
    length = int(last - first) + 1
    if length == 1:
        return bytes((1, first)), int(first), np.array([TOTAL])
    levels = to_levels(counts[first : last + 1])
    return bytes((length, first)) + levels.tobytes(), int(first), frequencies(of_levels(levels))


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
