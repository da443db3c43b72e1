"""Sends the values of each row that are largest in size, and where they stand."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fsl.argument_types import checks_types
from fsl.codecs.codec import Way
from fsl.codecs.through import Codes, Through
from fsl.errors import ConfigError, WireError

_MOST_SHAPES = 8  # whose residuals are kept: full batches, and last ones


class TopK(Through):
    """Sends `k` values of each row, those largest in size; the others become zero.

    `k`: a share of a row's D values (0.1; 1.0: all), or a whole number of them (1: one). The places travel beside the
    values: in min(D, k ceil(log2 D)) bits a row, as a mask or as places in their order, and in none where k is D. The
    cut gradient at the values needs no places: both ends know them. Error: what is left out, at most the share
    1 - k / D of a row's energy.

    `feedback`: what a batch leaves out is added to the next batch of the same shape, so that the sum of what is sent,
    and of what is still left out, is the sum of what came (error feedback; Stich et al. 2018, "Sparsified SGD with
    Memory", arXiv 1809.07599). It is for cut gradients alone, and remembers.
    """

    name: ClassVar[str] = "topk"

    @checks_types("topk.")
    def __init__(self, k: int | float = 0.1, feedback: bool = False) -> None:
        whole = not isinstance(k, float)
        if not (k >= 1 if whole else 0 < k <= 1):
            raise ConfigError(
                f"k={k!r}: give a share of a row's values, above 0 and up to 1.0, or a whole number of them, 1 or more"
            )
        self.k, self.feedback = k, feedback
        self.rowwise = not feedback  # type: ignore[misc]
        self.stateful = feedback  # type: ignore[misc]
        self._left: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    @property
    def differentiable(self) -> bool:
        """Whether gradients go through it: with feedback it has added to the values what others left."""
        return not self.feedback

    def refuse_use(self, way: Way) -> None:
        """ConfigError for feedback on smashed data."""
        if self.feedback and way == "up":
            raise ConfigError(
                "feedback=true adds to a batch what the one before left out, which means nothing for smashed data of "
                "other samples; leave it out here, and use it for cut gradients (codec.down)"
            )

    def refuse_unfit(self, shape: torch.Size) -> None:
        """ConfigError for more values than a row has."""
        self._kept(shape[1:].numel())

    def told_shape(self, values: Tensor) -> torch.Size:
        """Returns the shape of a row."""
        return values.shape[1:]

    def project(self, values: Tensor) -> Codes:
        """Returns (B, k) codes of values (B, ...), and their places, (B, bytes) uint8."""
        key = values.shape, values.dtype
        if key in self._left:
            values = values + self._left[key].to(values.device)
        rows = values.reshape(len(values), values.shape[1:].numel())
        kept = self._kept(rows.shape[1])
        places = self._choose(rows.detach(), kept).sort(dim=1).values
        if self.feedback:
            self._left.pop(key, None)
            self._left[key] = rows.detach().scatter(1, places, 0).reshape(values.shape)
            if len(self._left) > _MOST_SHAPES:
                del self._left[next(iter(self._left))]
        return Codes(rows.gather(1, places), {"places": _packed(places, rows.shape[1])})

    def restore(self, codes: Codes, shape: torch.Size) -> Tensor:
        """Returns values (B, *shape) from codes (B, k)."""
        given, size = codes.values, shape.numel()
        packed = codes.beside.get("places")
        if given.dim() != 2 or packed is None or len(codes.beside) != 1:
            raise WireError(f"codec '{self.name}' takes values (B, k) and places; it got {tuple(given.shape)}")
        whole = self.check_size((len(given), *shape), given.dtype)
        if not size or given.shape[1] != self._count(size) or given.shape[1] > size:
            raise WireError(f"codec '{self.name}' got {given.shape[1]} values a row for rows of shape {tuple(shape)}")
        places = _unpacked(packed, given.shape, size).to(given.device)
        return given.new_zeros(len(given), size).scatter(1, places, given).reshape(whole)

    def state(self) -> dict[str, Tensor]:
        """Returns what was left out, by a number; tensors tell their shapes."""
        return {f"left-{number}": left for number, left in enumerate(self._left.values())}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; WireError where it cannot be that of such a codec."""
        if not self.feedback:
            super().resume(state)
        left = {}
        for number in range(len(state)):
            tensor = state.get(f"left-{number}")
            if number >= _MOST_SHAPES or tensor is None or not tensor.dim() or not tensor.is_floating_point():
                raise WireError(f"codec '{self.name}' keeps residuals, and {', '.join(sorted(state))[:80]} came")
            self.check_size(tensor.shape, tensor.dtype)
            left[tensor.shape, tensor.dtype] = tensor
        self._left = left

    def _choose(self, rows: Tensor, kept: int) -> Tensor:
        """Returns which places (B, kept) of rows (B, D) are sent, in any order."""
        return rows.abs().topk(kept, dim=1).indices

    def _kept(self, size: int) -> int:
        if self._count(size) > size:
            raise ConfigError(f"k={self.k!r}: a row has {size} values; lower it, or give a share of them")
        return self._count(size)

    def _count(self, size: int) -> int:
        return max(1, round(self.k * size)) if isinstance(self.k, float) else int(self.k)


def _bits(kept: int, size: int) -> tuple[int, int]:
    """Returns the bits of a row's places, and those of one place; 0 of one place: a mask, or nothing."""
    one = (size - 1).bit_length()
    if kept == size:
        return 0, 0
    return (kept * one, one) if kept * one < size else (size, 0)


def _packed(places: Tensor, size: int) -> Tensor:
    """Returns places (B, k) below `size`, in their order, as bytes (B, n)."""
    rows, kept = places.shape
    total, one = _bits(kept, size)
    if one:
        bits = torch.stack([(places >> bit & 1).to(torch.uint8) for bit in range(one)], dim=2).reshape(rows, total)
    else:
        bits = torch.zeros(rows, size, dtype=torch.uint8, device=places.device).scatter(1, places, 1)[:, :total]
    eights = pad(bits, (0, -total % 8)).reshape(rows, -(-total // 8), 8)
    return (eights << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(2, dtype=torch.uint8)


def _unpacked(packed: Tensor, shape: torch.Size, size: int) -> Tensor:
    """Returns the places of this shape (B, k), each row's in their order; WireError for bytes of no such places."""
    rows, kept = shape
    total, one = _bits(kept, size)
    if packed.dtype is not torch.uint8 or packed.shape != (rows, -(-total // 8)):
        raise WireError(f"codec 'topk' got places of shape {tuple(packed.shape)} for {rows} rows of {size} values")
    eights = packed.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    bits = eights.reshape(rows, packed.shape[1] * 8)
    if bool(bits[:, total:].any()):
        raise WireError("codec 'topk' got places with bits behind the last one")
    bits = bits[:, :total]
    if not total:
        return torch.arange(size, device=packed.device).expand(rows, size)
    if not one:
        if not bool((bits.sum(1) == kept).all()):
            raise WireError(f"codec 'topk' got a mask that marks other than {kept} values of a row")
        return bits.nonzero()[:, 1].reshape(rows, kept)
    digits = bits.reshape(rows, kept, one)
    places = torch.zeros(rows, kept, dtype=torch.int64, device=packed.device)
    for bit in range(one):
        places |= digits[:, :, bit].to(torch.int64) << bit
    if not bool((places[:, 1:] > places[:, :-1]).all() and (places[:, -1] < size).all()):
        raise WireError(f"codec 'topk' got places that are not those of {kept} of {size} values, in their order")
    return places
