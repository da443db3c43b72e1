"""A segment as a function of tensors alone, for programs that know neither fsl nor the structures that models pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.segments import structures
from fsl.segments.calling import call, call_given, picked
from fsl.segments.tensor_trees import TensorTree, Values, received, shared_of, tensors_of
from fsl.split.cutting import SplitModel


@dataclass(frozen=True)
class Passed:
    """What goes into a segment or comes out of it: blank batches of two rows and of three, and a name per tensor."""

    two: Values
    three: Values
    names: tuple[str, ...]

    @staticmethod
    def of(two: Values, three: Values, alone: str) -> "Passed":
        """Name the tensors by where the model has them; `alone` is the name of one without a structure."""
        if isinstance(two, Tensor) or isinstance(three, Tensor):
            return Passed(two, three, (alone,))
        names = tuple(name or alone for name in two.names)
        plain = tuple(f"{alone}_{name}" if name[0].isdigit() else name for name in names)
        return Passed(two, three, tuple(name.replace(".", "_") for name in plain))

    @property
    def by_row(self) -> tuple[bool, ...]:
        """Returns, for each tensor, whether it has a row per sample."""
        shared = shared_of(self.two, self.three)
        return tuple(place not in shared for place in range(len(self.names)))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Returns the tensors of a batch of three rows."""
        return tensors_of(self.three)

    def described(self) -> list[dict[str, Any]]:
        """Returns each tensor's name, dtype, shape, and bytes per sample (per batch where all samples share it)."""
        return [
            {
                "name": name,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": [*(["batch"] if rows else []), *tensor.shape[1 if rows else 0 :]],
                "bytes": (tensor[0] if rows else tensor).numel() * tensor.element_size(),
            }
            for name, tensor, rows in zip(self.names, self.tensors, self.by_row, strict=True)
        ]


class FlatSegment(nn.Module):
    """A segment that takes and returns tensors in a row, with the segment's own parameters under their own names."""

    def __init__(self, segment: nn.Module, inputs: Passed, last: bool):
        super().__init__()
        self._segment: nn.Module
        # Not a child: its keys would get a prefix, and those of the unsplit model are wanted.
        self.__dict__["_segment"] = segment
        self._parameters, self._buffers, self._modules = segment._parameters, segment._buffers, segment._modules
        self._non_persistent_buffers_set = segment._non_persistent_buffers_set
        self._inputs, self._last = inputs, last
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the tensors that the segment passes on, or the model's outputs (B, ...) alone."""
        found = self._called(tensors)
        return (picked(found, type(self._segment).__name__),) if self._last else tuple(structures.tensors_in(found))

    def _called(self, tensors: Sequence[Tensor]) -> Any:
        two, three = self._inputs.two, self._inputs.three
        if isinstance(two, Tensor) or isinstance(three, Tensor):
            return call(self._segment, tensors[0])
        if two.structure == three.structure:
            return call(self._segment, TensorTree(tuple(tensors), two.structure))
        rows = tensors[self._inputs.by_row.index(True)].size(0)  # numbers that cross count rows
        return call_given(self._segment, structures.rebuilt_at_rows(two.structure, three.structure, rows, tensors))


def flat_segments(split: SplitModel, two: Values, three: Values) -> list[tuple[FlatSegment, Passed, Passed]]:
    """Returns each segment as a function of tensors, with what goes in and what comes out.

    `two` and `three`: blank inputs of so many rows.
    """
    found = []
    inputs = Passed.of(two, three, "input")
    for place, segment in enumerate(split.segments):
        last = place == len(split.segments) - 1
        flat = FlatSegment(segment.module, inputs, last)
        with torch.no_grad(), seeds.left_as_found():
            if last:
                two, three = (flat(*tensors_of(values))[0] for values in (inputs.two, inputs.three))
            else:
                two, three = (received(call(segment.module, values)) for values in (inputs.two, inputs.three))
        outputs = Passed.of(two, three, "outputs" if last else _CROSSING[place])
        found.append((flat, inputs, outputs))
        inputs = outputs
    return found


_CROSSING = ("smashed", "features")  # at the first cut, and at the second
