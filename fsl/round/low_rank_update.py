"""What a device has changed of its linear layers, as the few rows that changed them: smaller than the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.errors import CheckpointError

_ROUND = "round-"


@dataclass(frozen=True)
class LayerRows:
    """A linear layer's weights W (out, in) as W = W_0 - gradients^T inputs, and its bias as b = b_0 - their sum.

    `inputs` (R, in), `gradients` (R, out): of R rows that it was trained with, each gradient times its learning rate.
    """

    inputs: Tensor
    gradients: Tensor


def joined(parts: Sequence[LayerRows]) -> LayerRows:
    """Returns the rows of several changes of one layer, behind each other."""
    if len(parts) == 1:
        return parts[0]
    return LayerRows(torch.cat([one.inputs for one in parts]), torch.cat([one.gradients for one in parts]))


@dataclass(frozen=True)
class LowRankUpdate:
    """A segment that has trained for a while from weights that its file does not hold.

    `start`: the name that `Store.keep_start` gave to these weights, or `start_at` gives to a generation of the same
    owner. `layers`: by the name of the linear layer in the segment, "" where it is the segment itself.
    """

    start: str
    layers: Mapping[str, LayerRows]

    @property
    def start_round(self) -> int | None:
        """Returns the owner's generation that it counts from; None where that is a start of many."""
        return start_round(self.start)

    @property
    def bytes(self) -> int:
        """Returns the bytes of all rows."""
        return sum(t.numel() * t.element_size() for rows in self.layers.values() for t in (rows.inputs, rows.gradients))

    def refuse_unfit(self, start: Mapping[str, Tensor]) -> None:
        """CheckpointError where a layer's rows are none of that layer."""
        for layer, rows in self.layers.items():
            weight = start.get(parameters_of(layer)[0])
            shape = rows.gradients.shape[1:] + rows.inputs.shape[1:]
            if weight is None or shape != weight.shape or len(rows.inputs) != len(rows.gradients):
                raise CheckpointError(f"the rows kept of layer '{layer}' do not fit it; another model wrote them")

    def applied(self, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the segment's tensors, from those at its start; CheckpointError where they do not fit."""
        self.refuse_unfit(start)
        found = dict(start)
        for layer, rows in self.layers.items():
            weight, bias = parameters_of(layer)
            found[weight] = torch.addmm(start[weight], rows.gradients.t(), rows.inputs, alpha=-1.0)
            if bias in start:
                found[bias] = start[bias] - rows.gradients.sum(0)
        return found


def start_at(round: int) -> str:
    """Returns the name of an owner's generation as a start."""
    return f"{_ROUND}{round}"


def start_round(start: str) -> int | None:
    """Returns the generation of this name; None for another name."""
    number = start.removeprefix(_ROUND)
    return int(number) if number != start and number.isdecimal() else None


def parameters_of(layer: str) -> tuple[str, str]:
    """Returns the names that weight and bias of a layer have in its segment's state."""
    prefix = f"{layer}." if layer else ""
    return f"{prefix}weight", f"{prefix}bias"
