"""Rounds values as int8 would, in floats, and lets gradients pass: fake quantization."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError

_RATE = 0.1  # of a new batch in a range, as of BatchNorm's statistics


@dataclass(frozen=True)
class Steps:
    """The levels of values: a whole number q from 0 to `top` stands for scale * (q - zero)."""

    scale: float
    zero: int
    top: int


class Rounding(nn.Module):
    """Rounds values (B, ...) to 2^bits levels between the smallest and the largest that were seen, zero among them.

    In training mode it sees: `low` and `high` follow those of each batch at a rate of 0.1, the first batch makes them.
    They are buffers, so that devices' ranges are averaged like BatchNorm's statistics: the mean of ranges that hold
    zero is one that does. Gradients pass where values are within the range (straight through). Before the first batch
    values stay as they are. ConfigError for bits outside of 2 to 16.
    """

    low: Tensor
    high: Tensor
    batches: Tensor

    @checks_types()
    def __init__(self, bits: int = 8):
        super().__init__()
        check_bits("bits", bits)
        self.bits = bits
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Tensor) -> Tensor:
        """Returns rounded values of the same shape; in training mode these count in the range."""
        if self.training:
            self.see(values)
        return self.rounded(values)

    def see(self, values: Tensor) -> None:
        """Let a batch count in the range."""
        with torch.no_grad():
            low, high = values.detach().aminmax()
            rate = torch.where(self.batches == 0, 1.0, _RATE).to(self.low)
            self.low.lerp_(low.clamp(max=0).to(self.low), rate)
            self.high.lerp_(high.clamp(min=0).to(self.high), rate)
            self.batches += 1

    def rounded(self, values: Tensor) -> Tensor:
        """Returns values rounded by the range as it is."""
        found: Tensor = _Rounded.apply(values, self.low, self.high, 2**self.bits - 1)
        return found

    def steps(self, bits: int | None = None) -> Steps:
        """Returns the levels; ConfigError where nothing was seen."""
        top = 2 ** (self.bits if bits is None else bits) - 1
        if not self.batches:
            raise ConfigError(
                "int8: a layer has not seen a batch yet, so that its range is unknown; train the model, or use "
                "calibrated(model, batches)"
            )
        scale, zero = _levels(self.low, self.high, top)
        return Steps(float(scale), int(zero), top)

    def extra_repr(self) -> str:
        """Say the bits."""
        return f"bits={self.bits}"


def check_bits(name: str, bits: int) -> None:
    """Raise ConfigError for bits outside of 2 to 16."""
    if not 2 <= bits <= 16:
        raise ConfigError(f"{name}={bits}: it is a whole number from 2 to 16; what runs in int8 has 8")


def weight_levels(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Returns weights as whole numbers of at most 2^(bits-1) - 1 (as floats), and the scale of each output, its row."""
    most = 2 ** (bits - 1) - 1
    largest = weight.detach().abs().flatten(1).amax(1)
    scales = torch.where(largest > 0, largest / most, torch.ones_like(largest))
    per_row = scales.view(-1, *[1] * (weight.dim() - 1))
    return (weight.detach() / per_row).round().clamp(-most, most), scales


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """Returns weights rounded to 2^bits - 1 levels for each output, symmetric; gradients pass."""
    levels, scales = weight_levels(weight, bits)
    rounded = levels * scales.view(-1, *[1] * (weight.dim() - 1))
    found: Tensor = _Straight.apply(weight, rounded)
    return found


def _levels(low: Tensor, high: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Returns scale and zero of a range; a range of nothing but zero has the scale 1."""
    scale = (high - low) / top
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round().clamp(0, top)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, low: Tensor, high: Tensor, top: int) -> Tensor:
        scale, zero = _levels(low.to(values), high.to(values), top)
        levels = (values / scale).round() + zero
        seen = high > low
        ctx.save_for_backward(((levels >= 0) & (levels <= top)) | ~seen)
        return torch.where(seen, (levels.clamp(0, top) - zero) * scale, values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (within,) = ctx.saved_tensors
        return gradient * within, None, None, None


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
