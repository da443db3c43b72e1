"""Checks what crosses at a point, before anything of it reaches a model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from fsl.codecs.codec import Payload
from fsl.errors import SplitError, WireError
from fsl.importing.import_paths import ALLOWED, Allowed
from fsl.inference.split_points import INPUT, SplitPoints
from fsl.segments import structures
from fsl.segments.tensor_trees import Values, tensors_of


@dataclass(frozen=True)
class _Place:
    """What one of the crossing tensors is like; `shape` without the rows, unless all samples share it."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    shared: bool
    finite: bool  # in the example; where that is not, as in masks, it need not be

    def check(self, tensor: Tensor, rows: int) -> None:
        wanted = self.shape if self.shared else torch.Size([rows, *self.shape])
        if (tensor.dtype, tensor.shape) != (self.dtype, wanted):
            raise WireError(
                f"{self.name} is {tensor.dtype} of shape {tuple(tensor.shape)}; {self.dtype} of shape {tuple(wanted)} "
                "crosses there"
            )
        if not self.is_fine(tensor):
            raise WireError(f"{self.name} has a value that is not finite")

    def is_fine(self, tensor: Tensor) -> bool:
        """Returns whether a tensor of this dtype is finite, where it must be."""
        # The extremes of what holds a NaN are NaN: one pass, and no tensor of truth values.
        return not (self.finite and tensor.is_floating_point()) or all(map(isfinite, torch.aminmax(tensor)))


class PointGate:
    """What may cross at one point: the structure, dtypes and shapes of the example there, of any number of rows.

    `rest_bytes`: the bytes of what crosses whatever the rows are, and `row_bytes` those of each row.
    """

    def __init__(self, points: SplitPoints, point: str) -> None:
        self.point = point
        three = points.crossing(point).values
        two = three[:2] if point == INPUT else _quietly(points, point, points.example[:2])
        shared = frozenset() if isinstance(three, Tensor) else three.shared
        names = ["it"] if isinstance(three, Tensor) else [f"'{name}'" for name in three.names]
        self._places = [
            _Place(
                name if len(names) > 1 else f"what crosses at {point}",
                tensor.dtype,
                tensor.shape if place in shared else tensor.shape[1:],
                place in shared,
                not tensor.is_floating_point() or bool(tensor.isfinite().all()),
            )
            for place, (name, tensor) in enumerate(zip(names, tensors_of(three), strict=True))
        ]
        self._like = three
        self._two = "" if isinstance(two, Tensor) else two.structure
        self._structures: dict[int, str] = {}
        self.row_bytes = sum(p.shape.numel() * p.dtype.itemsize for p in self._places if not p.shared)
        self.rest_bytes = sum(p.shape.numel() * p.dtype.itemsize for p in self._places if p.shared)

    @property
    def activations(self) -> list[torch.Size]:
        """The shapes of a row of those that codecs encode; a tensor that all samples share counts as a row."""
        return [place.shape for place in self._places if place.dtype.is_floating_point]

    @property
    def largest(self) -> int:
        """The bytes of a row of the largest tensor, or of a shared one."""
        return max(p.shape.numel() * p.dtype.itemsize for p in self._places)

    @property
    def allowed(self) -> Allowed:
        """The classes that its structure names, as `CutCodec` takes them."""
        text = "" if isinstance(self._like, Tensor) else self._like.structure
        return Allowed(ALLOWED, structures.classes(text) if text else None)

    @property
    def is_plain(self) -> bool:
        """Whether one tensor crosses, any bytes of which are numbers."""
        return isinstance(self._like, Tensor) and self._like.dtype is not torch.bool

    def empty(self, rows: int) -> Tensor:
        """Returns memory for so many rows of the one tensor that crosses."""
        (place,) = self._places
        return torch.empty((rows, *place.shape), dtype=place.dtype)

    def is_finite(self, values: Tensor) -> bool:
        """Returns whether all values are finite, where they must be, of the one tensor that crosses."""
        return self._places[0].is_fine(values)

    def check_structure(self, payload: Payload, rows: int) -> None:
        """Raise WireError where a payload's tensors lie otherwise than the model passes them."""
        if payload.structure != self._structure(rows):
            raise WireError(f"what came lies otherwise in its structure than what crosses at {self.point}")

    def check(self, values: Values, rows: int) -> Values:
        """Returns values of so many rows as the model's own part would pass them; WireError where they cannot be."""
        tensors = tensors_of(values)
        if isinstance(values, Tensor) != isinstance(self._like, Tensor) or len(tensors) != len(self._places):
            raise WireError(f"{len(tensors)} tensors came; {len(self._places)} cross at {self.point}")
        for place, tensor in zip(self._places, tensors, strict=True):
            place.check(tensor, rows)
        if isinstance(values, Tensor) or isinstance(self._like, Tensor):
            return values
        if values.exact != self._like.exact or values.structure != self._structure(rows):
            raise WireError(f"what came lies otherwise in its structure than what crosses at {self.point}")
        return replace(values, shared=self._like.shared)

    def joined(self, parts: Sequence[Values], rows: int) -> Values:
        """Returns the rows of several questions in one batch of so many; SplitError where these cannot be joined."""
        first = parts[0]
        if len(parts) == 1:
            return first
        if isinstance(first, Tensor):
            return torch.cat([part for part in parts if isinstance(part, Tensor)])
        found = []
        for place, tensors in enumerate(zip(*map(tensors_of, parts), strict=True)):
            if place not in first.shared:
                found.append(torch.cat(tensors))
            elif all(torch.equal(tensors[0], other) for other in tensors[1:]):
                found.append(tensors[0])
            else:
                raise SplitError(f"'{first.names[place]}' has no row per sample, and differs between questions")
        return replace(first, tensors=tuple(found), structure=self._structure(rows))

    def _structure(self, rows: int) -> str:
        if isinstance(self._like, Tensor):
            return ""
        if rows not in self._structures:
            if len(self._structures) >= _KEPT:
                self._structures.clear()
            self._structures[rows] = structures.at_rows(self._two, self._like.structure, rows)
        return self._structures[rows]


def contiguous(values: Values) -> Values:
    """Returns values as they arrive over a wire: each tensor in order in memory, without a graph."""
    if isinstance(values, Tensor):
        return values.detach().contiguous()
    return values.like([tensor.detach().contiguous() for tensor in values.tensors])


def _quietly(points: SplitPoints, point: str, inputs: Values) -> Values:
    with torch.random.fork_rng(devices=[]):
        return points.head(point, inputs)


_KEPT = 256  # structures, by rows
