"""A bottleneck whose codes are trained to be few bits, and travel as whole numbers by a range coder."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.codecs.codec import Payload, pack
from fsl.codecs.factorised_prior import FactorisedPrior
from fsl.codecs.learned import Learned
from fsl.codecs.range_coding import (
    MOST_WEIGHT,
    TOTAL,
    Ints,
    RangeReader,
    bits_of,
    frequencies,
    of_levels,
    to_levels,
    written,
)
from fsl.errors import ConfigError, RunError, WireError
from fsl.segments.penalties import penalized

_REACH = 32  # codes from -32 to 31 are symbols
_ESCAPE = 2 * _REACH  # the symbol of all others, whose values follow the tables
_SYMBOLS = _ESCAPE + 1
_MOST_CHANNELS = 1024
_LARGEST = 1 << 24  # code; float32 has no larger odd numbers
_COUNT = 16  # what one symbol adds to what is remembered
_AT_FIRST = np.array([max(1, (4 * _COUNT) >> (abs(v) + 1)) for v in range(-_REACH, _REACH + 1)], dtype=np.int64)


class Entropic(Learned):
    """An entropic bottleneck: encoder, rounding and range coder on the device; range decoder and decoder at the edge.

    The loss is the task's plus `beta` times the bits a sample that a factorised prior with learned cumulative
    distributions expects (`fsl.codecs.factorised_prior`). What travels is rounded in training, too: gradients go
    straight through the rounding, and the rate alone is taken of codes with uniform noise (Minnen & Singh 2020,
    "Channel-wise autoregressive entropy models", arXiv 2007.08739, mixed quantization).

    The prior shapes codes in training; it does not travel, since it would take as many bytes as the codes' own table,
    which is never worse. A channel's table is either made from the codes of the session's steps before, which both ends
    count, or stands in the payload, where that is shorter. Codes outside of -32..31 take 4 bytes more. RunError for
    codes that are not finite or beyond 2^24. Tables couple the rows of a batch, so that no privacy by sample takes it.

    Matsubara et al. 2022, "SC2 Benchmark: Supervised Compression for Split Computing" (arXiv 2203.08875), entropic
    student; layers and tables are ours.
    """

    name: ClassVar[str] = "entropic"
    rowwise: ClassVar[bool] = False
    stateful: ClassVar[bool] = True
    fixed_size: ClassVar[bool] = False

    @checks_types("entropic.")
    def __init__(self, channels: int = 8, hidden: int = 32, stride: int = 2, beta: float = 1e-3) -> None:
        """Take `channels` of codes, `hidden` channels between layers, `stride` of images, `beta` of the loss a bit."""
        if not 1 <= channels <= _MOST_CHANNELS:
            raise ConfigError(f"channels={channels!r}: how many codes a place has, 1 to {_MOST_CHANNELS}")
        if hidden < 1:
            raise ConfigError(f"hidden={hidden!r}: channels between the layers of encoder and decoder, 1 or more")
        if stride < 1:
            raise ConfigError(f"stride={stride!r}: places of an image's side that become one, 1 or more")
        if not 0 <= beta < float("inf"):
            raise ConfigError(f"beta={beta!r}: what a bit a sample adds to the loss, 0 or more")
        self.channels, self.hidden, self.stride, self.beta = channels, hidden, stride, beta
        self._counts = torch.zeros(channels, _SYMBOLS, dtype=torch.int64)

    def modules(self, shape: torch.Size) -> tuple[nn.Module, nn.Module]:
        """Returns encoder and decoder for images (B, C, H, W), features (B, D) or tokens (B, T, D)."""
        if len(shape) not in (2, 3, 4) or 0 in shape[1:]:
            raise ConfigError(
                f"entropic takes smashed data (B, C, H, W), (B, D) or (B, T, D), and the cut gives {tuple(shape)}; cut "
                "elsewhere"
            )
        image = len(shape) == 4
        width, sides = (shape[1], shape[2:]) if image else (shape[-1], shape[1:-1])
        places = torch.Size(-(-side // self.stride) for side in sides) if image else sides
        codes, values = self.channels * places.numel(), width * sides.numel()
        if codes > values:
            raise ConfigError(
                f"channels={self.channels}: a sample of {values} values would become {codes} codes; give fewer channels"
                + (", or a larger stride" if image else "")
            )
        if image:
            down, narrow = nn.Conv2d(width, self.hidden, 3, self.stride, 1), nn.Conv2d(self.hidden, self.channels, 1)
            widen, up = nn.Conv2d(self.channels, self.hidden, 1), nn.Conv2d(self.hidden, width, 3, 1, 1)
            decoder = nn.Sequential(widen, nn.ReLU(), nn.Upsample(tuple(sides)), up)
        else:
            down, narrow = nn.Linear(width, self.hidden), nn.Linear(self.hidden, self.channels)
            decoder = nn.Sequential(nn.Linear(self.channels, self.hidden), nn.ReLU(), nn.Linear(self.hidden, width))
        return EntropicEncoder(nn.Sequential(down, nn.ReLU(), narrow), self.channels, self.beta), decoder

    def refuse_unfit(self, shape: torch.Size) -> None:
        """ConfigError for codes of another number of channels."""
        if len(shape) not in (2, 3, 4) or shape[_axis(shape)] != self.channels:
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
        codes = values.detach().movedim(_axis(values.shape), 0).reshape(self.channels, -1).cpu().double().round()
        if codes.numel() and not float(codes.abs().max()) <= _LARGEST:
            raise RunError("codec entropic got codes beyond 2^24; training has diverged: lower the learning rate")
        whole = codes.to(torch.int64).numpy()
        symbols = np.where((whole >= -_REACH) & (whole < _REACH), whole + _REACH, _ESCAPE).astype(np.int32)
        counts = _counted(symbols)
        remembered = frequencies(self._counts.numpy() + _AT_FIRST)
        known = bits_of(counts, remembered)
        told, heads, runs = np.zeros(self.channels, dtype=bool), list[bytes](), list[tuple[NDArray[np.int32], Ints]]()
        for channel, row in enumerate(symbols):
            head, first, table = _told_table(counts[channel]) if row.size else (b"", 0, remembered[channel])
            own = counts[channel, first : first + len(table)]
            told[channel] = bool(row.size) and float(bits_of(own, table)) + 8 * len(head) < known[channel]
            if told[channel]:
                heads.append(head)
            runs.append((row - np.int32(first), table) if told[channel] else (row, remembered[channel]))
        self._remember(counts)
        beyond = whole[symbols == _ESCAPE].astype("<i4").tobytes()
        beside = np.packbits(told).tobytes() + b"".join(heads) + beyond
        arrays = ("values", _tensor(written(runs))), ("beside", _tensor(beside))
        return pack(self.name, values.dtype, *arrays, shape=values.shape)

    def decode(self, payload: Payload) -> Tensor:
        """Returns the codes (B, ...), whole numbers; WireError for what no encoder sends.

        Most changed bytes cannot be told from others: they stand for other codes of this shape, which are within 2^24.
        """
        words, beside = payload.unpack(self.name, values=torch.uint8, beside=torch.uint8)
        shape = self.check_size(payload.shape, payload.dtype)
        if len(shape) not in (2, 3, 4) or shape[_axis(shape)] != self.channels or words.dim() != 1 or beside.dim() != 1:
            raise WireError(f"codec 'entropic' got codes of shape {tuple(shape)}, and has {self.channels} channels")
        tables, rest = self._tables(bytes(beside.numpy()))
        reader = RangeReader(bytes(words.numpy()))
        number = shape.numel() // self.channels
        symbols = np.stack([reader.read(number, table) + np.int32(first) for first, table in tables])
        reader.close()
        escaped = symbols == _ESCAPE
        beyond = np.frombuffer(rest, "<i4") if len(rest) % 4 == 0 else np.empty(0)
        largest = min(_LARGEST, torch.finfo(payload.dtype).max)
        if len(beyond) != escaped.sum() or len(rest) % 4 or (abs(beyond.astype(np.int64)) > largest).any():
            raise WireError(f"codec 'entropic' got {len(rest)} bytes for {escaped.sum()} codes that are in no table")
        self._remember(_counted(symbols))
        symbols -= _REACH
        symbols[escaped] = beyond
        axis = _axis(shape)
        front = torch.Size([self.channels, *shape[:axis], *shape[axis + 1 :]])
        return torch.from_numpy(symbols).view(front).movedim(0, axis).to(payload.dtype).contiguous()

    def _tables(self, beside: bytes) -> tuple[list[tuple[int, Ints]], bytes]:
        """Returns the first symbol and the table of each channel, and the bytes behind the tables."""
        remembered = frequencies(self._counts.numpy() + _AT_FIRST)
        place = -(-self.channels // 8)
        told = np.unpackbits(np.frombuffer(beside[:place], np.uint8))[: self.channels]
        tables = [(0, table) for table in remembered]
        for channel in np.flatnonzero(told):
            length, first = (*beside[place : place + 2], 0, 0)[:2]
            levels = np.frombuffer(beside[place + 2 : place + 2 + length * (length > 1)], np.uint8)
            if not 1 <= length <= _SYMBOLS - first or (length > 1 and len(levels) < length):
                raise WireError(f"codec 'entropic' got a table of {length} symbols from {first} on")
            tables[channel] = first, frequencies(of_levels(levels)) if length > 1 else np.array([TOTAL])
            place += 2 + len(levels)
        if len(told) < self.channels:
            raise WireError(f"codec 'entropic' got no tables for its {self.channels} channels")
        return tables, beside[place:]

    def _remember(self, counts: Ints) -> None:
        """Add a step's symbols; what came before counts three quarters of what it did."""
        before = self._counts.numpy()
        self._counts = torch.from_numpy(np.minimum(before - before // 4 + _COUNT * counts, MOST_WEIGHT))


class EntropicEncoder(nn.Module):
    """Makes codes, whole numbers through whose rounding gradients go straight, and in training adds their rate's loss.

    The prior is fitted to the codes at its own pace, whatever `beta` is: it descends on their mean bits a code, and the
    codes on `beta` times their bits a sample.
    """

    def __init__(self, layers: nn.Module, channels: int, beta: float) -> None:
        super().__init__()
        self.layers, self.prior, self.beta = layers, FactorisedPrior(channels), beta

    def forward(self, smashed: Tensor) -> Tensor:
        """Returns codes (B, channels, H, W), (B, channels) or (B, T, channels) of smashed data."""
        values = self.layers(smashed)
        codes = values + (values.round() - values).detach()
        if not (self.training and torch.is_grad_enabled() and values.numel()):
            return codes
        noisy = (values + torch.rand_like(values) - 0.5).movedim(_axis(values.shape), 0).flatten(1)
        weight = self.beta * values[0].numel()  # bits a sample are so many times the mean bits a code
        bits = self.prior(weight * noisy + (1 - weight) * noisy.detach())
        return penalized(codes, bits.mean())


def _axis(shape: torch.Size) -> int:
    return 1 if len(shape) == 4 else len(shape) - 1


def _counted(symbols: NDArray[np.int32]) -> Ints:
    """Returns how often each symbol stands in each row: (C, 65) of (C, N)."""
    rows = np.arange(len(symbols))[:, None] * _SYMBOLS
    return np.bincount((symbols + rows).ravel(), minlength=len(symbols) * _SYMBOLS).reshape(-1, _SYMBOLS)


def _told_table(counts: Ints) -> tuple[bytes, int, Ints]:
    """Returns a table for symbols that are counted (65,), as bytes, its first symbol, and its frequencies."""
    first, last = np.flatnonzero(counts)[[0, -1]]
    length = int(last - first) + 1
    if length == 1:
        return bytes((1, first)), int(first), np.array([TOTAL])
    levels = to_levels(counts[first : last + 1])
    return bytes((length, first)) + levels.tobytes(), int(first), frequencies(of_levels(levels))


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
