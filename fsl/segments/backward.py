"""Sends a gradient that came from elsewhere back through a segment."""

import torch
from torch import Tensor

from fsl.errors import RunError


def send_back(outputs: Tensor, gradient: Tensor) -> None:
    """Run the backward pass from a segment's outputs, whose gradient is `gradient`; RunError for another shape.

    As `outputs.backward(gradient)`, which imports sympy to compare the two shapes: 35 MB, and half a second of a
    process's first step.
    """
    if outputs.shape != gradient.shape:
        shapes = f"{tuple(gradient.shape)} for outputs of shape {tuple(outputs.shape)}"
        raise RunError(f"a gradient of shape {shapes} came back; an edge trainer gives one of the smashed data's shape")
    torch.autograd.Variable._execution_engine.run_backward(
        (outputs,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )
