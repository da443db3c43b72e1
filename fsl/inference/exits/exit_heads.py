"""Exit heads: what makes outputs of the values at a point of a model. Each has a width, but for the linear one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.exits.head_layers import (
    FusedBranches,
    PlaceMean,
    Shape,
    Turned,
    channels_of,
    output_layer,
    sides_of,
)
from fsl.inference.exits.single_layer_vit import SingleLayerViT
from fsl.models.layers import PlaceGrid


class ExitHead(ABC):
    """What an exit's head is to be; `build` makes it for values of these shapes.

    `kind`: its name. A head takes the leading activation of what passes the point, or with `fuses` all activations that
    have a row per sample.
    """

    kind: ClassVar[str]
    fuses: ClassVar[bool] = False

    @abstractmethod
    def build(self, shapes: Sequence[Shape], outputs: Shape) -> nn.Module:
        """Returns a new head, with weights drawn from torch's generator; all shapes are without the batch.

        ConfigError where it cannot work on such values.
        """


@checks_types()
@dataclass(frozen=True)
class LinearExit(ExitHead):
    """The mean over positions, and a linear layer."""

    kind: ClassVar[str] = "linear"

    def build(self, shapes: Sequence[Shape], outputs: Shape) -> nn.Module:
        """Returns pool and linear."""
        return nn.Sequential(PlaceMean(), output_layer(channels_of(shapes[0]), outputs))


@checks_types()
@dataclass(frozen=True)
class MLPExit(ExitHead):
    """Means over a grid of at most `grid` places a side, a hidden layer of `width`, ReLU, a linear layer."""

    width: int = 64
    grid: int = 4
    kind: ClassVar[str] = "mlp"

    def __post_init__(self) -> None:
        _at_least_one(width=self.width, grid=self.grid)

    def build(self, shapes: Sequence[Shape], outputs: Shape) -> nn.Module:
        """Returns grid, hidden layer and linear."""
        return nn.Sequential(*_on_grid(shapes[0], self.grid, self.width), nn.ReLU(), output_layer(self.width, outputs))


@checks_types()
@dataclass(frozen=True)
class ConvExit(ExitHead):
    """A convolution 3 of stride 2 to `width` channels, BatchNorm, ReLU, the mean over positions, a linear layer."""

    width: int = 32
    kind: ClassVar[str] = "conv"

    def __post_init__(self) -> None:
        _at_least_one(width=self.width)

    def build(self, shapes: Sequence[Shape], outputs: Shape) -> nn.Module:
        """Returns convolution, pool and linear."""
        channels, sides = channels_of(shapes[0]), sides_of(shapes[0])
        if not sides:
            raise _no_positions(self.kind, shapes[0])
        if len(sides) == 2:
            layers = [nn.Conv2d(channels, self.width, 3, 2, 1, bias=False), nn.BatchNorm2d(self.width)]
        else:
            layers = [Turned(), nn.Conv1d(channels, self.width, 3, 2, 1, bias=False), nn.BatchNorm1d(self.width)]
        back = [] if len(sides) == 2 else [Turned()]
        return nn.Sequential(*layers, nn.ReLU(), *back, PlaceMean(), output_layer(self.width, outputs))


@checks_types()
@dataclass(frozen=True)
class SLViTExit(ExitHead):
    """A single-layer vision transformer (`SingleLayerViT`), and a linear layer.

    `patch`: the side of a patch; None: as makes four patches a side, where the feature map has so many places.
    """

    width: int = 32
    patch: int | None = None
    heads: int = 4
    kind: ClassVar[str] = "sl_vit"

    def __post_init__(self) -> None:
        _at_least_one(width=self.width, patch=1 if self.patch is None else self.patch, heads=self.heads)
        if self.width % self.heads:
            raise ConfigError(f"width={self.width}: {self.heads} heads must divide it; give a multiple of {self.heads}")

    def build(self, shapes: Sequence[Shape], outputs: Shape) -> nn.Module:
        """Returns the transformer and linear."""
        sides = sides_of(shapes[0])
        if not sides:
            raise _no_positions(self.kind, shapes[0])
        patch = max(1, max(sides) // 4) if self.patch is None else self.patch
        transformer = SingleLayerViT(shapes[0], self.width, patch, self.heads)
        return nn.Sequential(transformer, output_layer(self.width, outputs))


@checks_types()
@dataclass(frozen=True)
class FusionExit(ExitHead):
    """Fuses all activations: means over a grid of each to `width` values, ReLU of these in a row, a linear layer.

    For points where several branches pass, as of picture and sound. `grid`: at most so many places a side.
    """

    width: int = 32
    grid: int = 8
    kind: ClassVar[str] = "fusion"
    fuses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _at_least_one(width=self.width, grid=self.grid)

    def build(self, shapes: Sequence[Shape], outputs: Shape) -> nn.Module:
        """Returns a head that takes so many activations."""
        if len(shapes) < 2:
            raise ConfigError(f"a fusion exit joins several activations, and {len(shapes)} passes there; use linear")
        branches = [nn.Sequential(*_on_grid(shape, self.grid, self.width)) for shape in shapes]
        return FusedBranches(branches, output_layer(self.width * len(shapes), outputs))


HEADS: tuple[type[ExitHead], ...] = (LinearExit, MLPExit, ConvExit, SLViTExit, FusionExit)


def exit_head(given: "ExitHead | str") -> ExitHead:
    """Returns what a head is to be, by its name with the usual sizes; ConfigError for other names."""
    if isinstance(given, ExitHead):
        return given
    for kind in HEADS:
        if kind.kind == given:
            return kind()
    raise ConfigError(
        f"exit head {given!r}: allowed are {', '.join(kind.kind for kind in HEADS)}, one with its sizes as "
        "ConvExit(width=64), or a module"
    )


def _on_grid(shape: Shape, grid: int, width: int) -> tuple[nn.Module, nn.Module]:
    """Returns means over a grid of at most so many places a side, and a linear layer of these."""
    sides = tuple(min(side, grid) for side in sides_of(shape))
    return PlaceGrid(sides), nn.Linear(channels_of(shape) * math.prod(sides), width)


def _no_positions(kind: str, shape: Shape) -> ConfigError:
    return ConfigError(f"exit head {kind!r} works over places, and (B, {shape[0]}) has none; use linear or mlp")


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name}={size}: 1 or more")
