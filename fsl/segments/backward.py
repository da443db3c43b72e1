"""Sends a gradient that came from elsewhere back through a segment."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fsl.errors import RunError
from fsl.segments.tensor_trees import Values, activations_of, tensors_of


def send_back(outputs: Values, gradient: Values) -> None:
    """Run the backward pass from a segment's outputs, whose gradient is `gradient`; RunError for another shape.

    As `outputs.backward(gradient)`, which imports sympy to compare the two shapes: 35 MB, and half a second of a
    process's first step.
    """
    sent, came = activations_of(outputs), tensors_of(gradient)
    if [tensor.shape for tensor in sent] != [tensor.shape for tensor in came]:
        shapes = f"{_shapes(came)} for outputs of shape {_shapes(sent)}"
        raise RunError(f"a gradient of shape {shapes} came back; an edge trainer gives one of the smashed data's shape")
    torch.autograd.Variable._execution_engine.run_backward(
        sent, came, False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _shapes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
