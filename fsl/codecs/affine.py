"""What codecs of few bits share: an affine map from values to whole numbers, which are packed into bytes."""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, Payload, pack
from fsl.errors import ConfigError, RunError, WireError

Per = Literal["tensor", "channel", "sample"]

_CHUNK = 1 << 16  # values that a processor works on at a time: they stay in its cache from one operation to the next
_DRAW = (1 - 2.0**-11) / 2**16  # of a step: a draw of 16 bits times it stays within half a step, and so does an end
_COARSE = 2.0**-100  # a step above it is rounded relative to its size


class Affine(Codec):
    """Values become q with value = middle + (q - levels / 2) * step, q in 0..levels, levels = 2^bits - 1.

    `per`: what has a range of its own, told by its middle and its step: the tensor, each channel (dim 1), each sample.
    `stochastic`: rounds up with the probability that makes the mean of q the exact one, to within 3e-4 and the dtype's
    own rounding; values at the ends of their range stay there. Rows that are encoded per sample do not depend on each
    other in this either: see `_RowDraws`.

    Error: at most half a step, (max - min) / (2 levels), or where rounding is stochastic less than a step; and the
    dtype's own rounding. RunError for values that are not finite, which have no place on the scale. Per sample such a
    row is restored as NaN instead, and the other rows are as ever: one row must not decide what becomes of others, and
    whoever looks for values that are not finite finds them, as behind `identity`.
    """

    bits: ClassVar[int]

    def __init__(self, per: Per = "tensor", stochastic: bool = False) -> None:
        if per not in get_args(Per):
            raise ConfigError(f"{self.name}.per={per!r}: name what has a range of its own: {', '.join(get_args(Per))}")
        self.per, self.stochastic = per, bool(stochastic)
        self.rowwise = per == "sample"  # type: ignore[misc]

    @property
    def levels(self) -> int:
        """The largest q."""
        return 2**self.bits - 1

    def refuse_unfit(self, shape: torch.Size) -> None:
        """ConfigError for values (B,), which have no channels."""
        if self.per == "channel" and len(shape) < 2:
            raise ConfigError(f"{self.name}.per='channel': values of shape {tuple(shape)} have none; use tensor")

    def encode(self, values: Tensor) -> Payload:
        """Returns q as bytes, 8 / bits numbers in each, and the middle and step of each range (float32 or wider).

        8 bits have the shape of the values; fewer lie in rows (B, bytes) per sample, else in one, see `packed`.
        """
        self.refuse_unfit(values.shape)
        laid = self._laid(values.detach(), values.shape)
        low, high = (end.to(_scale_dtype(values.dtype)) for end in self._ends(laid))
        # Halves the values first: their whole range may overflow the dtype.
        middle, step = low / 2 + high / 2, high / self.levels - low / self.levels
        sound = low * 0 == high * 0  # of what is not finite that is NaN, which equals nothing
        if not (all_sound := bool(sound.all())):
            if not self.rowwise:
                raise RunError(
                    f"codec {self.name} got a value that is not finite; training has diverged: lower the learning rate"
                )
            middle, step = (each.masked_fill(~sound, torch.nan) for each in (middle, step))
        codes = self._codes(laid, low, high, middle, step, all_sound)
        scale = ("scale", torch.stack((middle, step), dim=-1))
        if self.bits == 8:
            return pack(self.name, values.dtype, ("values", codes.view(values.shape)), scale)
        if self.rowwise:
            return pack(self.name, values.dtype, ("values", packed(codes, self.bits)), scale, shape=values.shape[1:])
        return pack(
            self.name, values.dtype, ("values", packed(codes.view(1, -1), self.bits)[0]), scale, shape=values.shape
        )

    def decode(self, payload: Payload) -> Tensor:
        """Returns the values in the dtype that was encoded."""
        dtype = payload.dtype
        codes, scale = payload.unpack(self.name, values=torch.uint8, scale=_scale_dtype(dtype))
        shape = codes.shape if self.bits == 8 else self._told(codes, payload.shape)
        if len(shape) < {"tensor": 0, "channel": 2, "sample": 1}[self.per]:
            raise WireError(f"codec '{self.name}' has a scale per {self.per}; it got values of shape {tuple(shape)}")
        scales = (*{"tensor": (), "channel": shape[1:2], "sample": shape[:1]}[self.per], 2)
        if scale.shape != scales:
            raise WireError(f"codec '{self.name}' takes a scale of shape {scales}; it got {tuple(scale.shape)}")
        self.check_size(shape, dtype)
        if self.bits < 8:
            rows = codes if self.rowwise else codes.unsqueeze(0)
            codes = unpacked(rows, self.bits, math.prod(shape[1:] if self.rowwise else shape))
        return self._restored(self._laid(codes, shape), scale, dtype).view(shape)

    def _told(self, bits: Tensor, told: torch.Size) -> torch.Size:
        """Returns the shape of the values; WireError where there are not as many bytes as these take."""
        wanted = (*bits.shape[: self.rowwise], packed_size(math.prod(told), self.bits))
        if bits.shape != wanted:
            raise WireError(f"codec '{self.name}' takes bytes of shape {wanted}; it got {tuple(bits.shape)}")
        return torch.Size((*bits.shape[: self.rowwise], *told))

    def _laid(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Returns values of this shape as (N,), (B, C, N) or (B, N), for a range per tensor, channel or sample."""
        kept = {"tensor": 0, "channel": 2, "sample": 1}[self.per]
        return values.reshape(*shape[:kept], math.prod(shape[kept:]))

    def _ends(self, laid: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the least and the greatest value of each range; zeros where it has none."""
        if not laid.numel():
            zeros = laid.new_zeros({"tensor": (), "channel": laid.shape[1:2], "sample": laid.shape[:1]}[self.per])
            return zeros, zeros
        if self.per == "tensor":
            return laid.amin(), laid.amax()
        low, high = laid.amin(-1), laid.amax(-1)  # faster than aminmax
        return (low.amin(0), high.amax(0)) if self.per == "channel" else (low, high)

    def _codes(self, laid: Tensor, low: Tensor, high: Tensor, middle: Tensor, step: Tensor, sound: bool) -> Tensor:
        divisor = torch.where(step > 0, step, 1)  # a constant has step zero, and decodes to its middle, whatever q is
        half, dtype = self.levels / 2, middle.dtype
        draws = (
            None if not self.stochastic else _RowDraws(self, laid, low, high) if self.rowwise else _Draws(self, laid)
        )
        within = draws is None and not bool((divisor < _COARSE).any())  # no rounding leads beyond the ends
        if draws is not None:
            # Stretches by what rounding may have taken from the ends, which are to lie on theirs or beyond.
            lost = 4 * torch.finfo(dtype).eps * (1 + middle.abs() / (divisor * self.levels))
            divisor = divisor * (1 - lost.clamp_(max=0.5))
        codes = torch.empty(laid.shape, dtype=torch.uint8, device=laid.device)
        for part, room in in_parts(laid, dtype):
            q = torch.sub(laid[part].to(dtype), self._of(middle, part), out=room).div_(self._of(divisor, part))
            q.add_(half)
            if not sound:
                q.nan_to_num_(0)  # of a row that is not finite; else what a machine makes of NaN
            if not within:
                q.clamp_(0, self.levels)
            if draws is not None:
                q.add_(draws.of(part), alpha=_DRAW)
            # Beside this number a float has no bits for fractions: it rounds, and the lowest byte is the whole number.
            codes[part].copy_(q.add_(1.5 / torch.finfo(dtype).eps).view(_WHOLE[q.itemsize]))
        return codes

    def _restored(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        middle, step = scale.unbind(-1)
        half = scale.new_tensor(self.levels / 2)
        values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
        for part, room in in_parts(codes, scale.dtype):
            wide = values[part] if dtype is scale.dtype else room
            wide.copy_(codes[part]).sub_(half).mul_(self._of(step, part)).add_(self._of(middle, part))
            if dtype is not scale.dtype:
                values[part].copy_(wide)
        return values

    def _of(self, each: Tensor, part: slice) -> Tensor:
        """Returns what belongs to each range in a shape that goes with a part of the values."""
        return each if self.per == "tensor" else (each if self.per == "channel" else each[part]).unsqueeze(-1)


class _Draws:
    """A whole number of 16 bits for each value, from -2^15 up to below 2^15, all alike."""

    def __init__(self, codec: Affine, laid: Tensor) -> None:
        self._numbers = _drawn(codec.generator(), laid.shape).to(laid.device)

    def of(self, part: slice) -> Tensor:
        """Returns those of a part."""
        return self._numbers[part]


class _RowDraws:
    """A whole number of 16 bits for each value of a row, whatever rows are beside it and wherever it stands among them.

    Draws one for each place in a row, and shifts them, around the circle, by what a hash makes of the row's own range.
    Each number is uniform, so that rounding is unbiased; rows of different ranges get different ones.
    """

    def __init__(self, codec: Affine, laid: Tensor, low: Tensor, high: Tensor) -> None:
        self._numbers = _drawn(codec.generator(), laid.shape[1:]).to(laid.device)
        one, other = (end.view(_WHOLE[end.itemsize]).long() for end in (low, high))
        mixed = one * _ODD[0] + other * _ODD[1]
        mixed = (mixed ^ (mixed >> 31)) * _ODD[2]
        self._shifts = (mixed >> 44).to(torch.int16).unsqueeze(-1)

    def of(self, part: slice) -> Tensor:
        """Returns those of a part's rows."""
        return self._numbers + self._shifts[part]


def _drawn(generator: torch.Generator, shape: torch.Size) -> Tensor:
    """Returns numbers of 16 bits, four of each draw of 64: that takes a fifth of the time of as many floats."""
    count = shape.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[:count].view(shape)


_WHOLE = {4: torch.int32, 8: torch.int64}
_ODD = (0x2545F4914F6CDD1D, 0x369DEA0F31A53F85, 0x1B873593CC9E2D51)  # factors modulo 2^64 that spread low bits


def packed(codes: Tensor, bits: int) -> Tensor:
    """Returns rows (R, n) of numbers below 2^bits as rows of bytes (R, ceil(n bits / 8)).

    A row is cut into 8 / bits equal parts, which lie over each other: number i of part k is in byte i, from bit k bits.
    """
    width = packed_size(codes.shape[1], bits)
    made = codes[:, :width].clone()
    for part in range(1, 8 // bits):
        one = codes[:, part * width : (part + 1) * width]
        made[:, : one.shape[1]] |= one << (part * bits)
    return made


def unpacked(rows: Tensor, bits: int, count: int) -> Tensor:
    """Returns the `count` numbers of each row that `packed` packed, (R, count) uint8."""
    width, parts = rows.shape[1], 8 // bits
    codes = torch.empty(len(rows), parts * width, dtype=torch.uint8, device=rows.device)
    for part in range(parts):
        codes[:, part * width : (part + 1) * width] = (rows >> (part * bits)) & (2**bits - 1)
    return codes[:, :count]


def packed_size(count: int, bits: int) -> int:
    """Returns how many bytes so many numbers take."""
    return -(-count * bits // 8)


def in_parts(laid: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yields parts of the first dimension, each with the same room of its shape; an accelerator takes all at once."""
    rows = len(laid)
    if laid.device.type == "cpu" and laid.numel():
        rows = max(1, min(rows, _CHUNK * rows // laid.numel()))
    room = torch.empty(rows, *laid.shape[1:], dtype=dtype, device=laid.device)
    for start in range(0, len(laid), max(1, rows)):
        part = slice(start, min(start + rows, len(laid)))
        yield part, room[: part.stop - start]


def _scale_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
