"""Layers of exit heads, and the shapes that they work on: images (C, H, W), tokens (T, D), features (D,)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsl.errors import ConfigError

Shape = tuple[int, ...]


class PlaceMean(nn.Module):
    """The mean over positions: of (B, C, H, W), (B, T, D), or (B, D), which has none."""

    def forward(self, values: Tensor) -> Tensor:
        """Returns (B, C) or (B, D)."""
        return values.mean((2, 3)) if values.dim() == 4 else values.mean(1) if values.dim() == 3 else values


class Turned(nn.Module):
    """Tokens (B, T, D) as channels (B, D, T), and back."""

    def forward(self, values: Tensor) -> Tensor:
        """Returns the last two dimensions exchanged."""
        return values.transpose(1, 2)


class FusedBranches(nn.Module):
    """A branch for each activation, their values in a row, ReLU, and a layer of outputs."""

    fuses = True

    def __init__(self, branches: Sequence[nn.Module], outputs: nn.Module) -> None:
        super().__init__()
        self.branches, self.outputs = nn.ModuleList(branches), outputs

    def forward(self, *values: Tensor) -> Tensor:
        """Returns outputs (B, ...) of as many activations as there are branches."""
        made = [branch(value) for branch, value in zip(self.branches, values, strict=True)]
        return self.outputs(torch.cat(made, 1).relu())


def output_layer(values: int, outputs: Shape) -> nn.Module:
    """Returns a linear layer from (B, values) to (B, *outputs)."""
    last = nn.Linear(values, math.prod(outputs))
    return last if len(outputs) == 1 else nn.Sequential(last, nn.Unflatten(1, outputs))


def channels_of(shape: Shape) -> int:
    """Returns the values at a place; ConfigError for a shape that is none of the three."""
    if not 1 <= len(shape) <= 3:
        raise ConfigError(
            f"exit heads take images (B, C, H, W), tokens (B, T, D) or features (B, D), and values of shape "
            f"(B, {', '.join(map(str, shape))}) pass there; give a module of your own"
        )
    return shape[0] if len(shape) == 3 else shape[-1]


def sides_of(shape: Shape) -> Shape:
    """Returns the numbers of places: height and width, tokens, or none; ConfigError as `channels_of`."""
    channels_of(shape)
    return shape[1:] if len(shape) == 3 else shape[:1] if len(shape) == 2 else ()
