"""In which precision a step computes: torch's autocast around each segment's forward pass and the loss."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from fsl.errors import ConfigError, one_of

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS = ("float32", "bfloat16", "float16")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_FULL: AbstractContextManager[Any] = nullcontext()

# What losses are multiplied by in float16, where small gradients would else be zero: a power of two, so that dividing
# by it is exact. It is fixed: all segments of a device must use the same, and none knows whether another's overflowed.
LOSS_SCALE = 1024.0


def check_precision(precision: object) -> Precision:
    """Returns a precision; ConfigError for anything else."""
    return one_of("precision", precision, PRECISIONS)  # type: ignore[arg-type]


def refuse_precision(precision: Precision, accelerator: torch.device) -> None:
    """Raise ConfigError for a precision in which this accelerator does not train."""
    if precision == "float16" and accelerator.type != "cuda":
        raise ConfigError(
            f"precision=float16: it is trained on CUDA alone, and this node computes on {accelerator.type}; use "
            "precision=bfloat16, or backend.accelerator=cuda"
        )


def computing(precision: Precision, accelerator: torch.device) -> AbstractContextManager[Any]:
    """A context in which torch computes in this precision, where that is safe; in float32 it does nothing."""
    if precision == "float32":
        return _FULL
    return torch.autocast(accelerator.type, _DTYPES[precision])


def loss_scale(precision: Precision) -> float:
    """Returns what losses, and so all gradients before the optimizer's, are multiplied by."""
    return LOSS_SCALE if precision == "float16" else 1.0


def scaled(loss: Tensor, scale: float) -> Tensor:
    """Returns a loss as it is, whose gradient is `scale` times as large."""
    if scale == 1:
        return loss
    found: Tensor = _Scaled.apply(loss, scale)
    return found


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None
