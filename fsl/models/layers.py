"""Building blocks of the models."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from fsl.errors import ConfigError

Norm = Literal["batch", "group", "none"]


class Stages(nn.Sequential):
    """A model as a sequence of named stages; any stage but the last is a cut, `default_cut` the paper's.

    `made_with`: its constructor's arguments, by which a saved model is made again.
    """

    default_cut: ClassVar[str]
    made_with: Mapping[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Stages":
        """Remember the arguments; wrong ones are left to the constructor."""
        made = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind_partial(made, *args, **kwargs).arguments
        except TypeError:
            bound = {}
        made.__dict__["made_with"] = dict(list(bound.items())[1:])  # without self
        return made

    def __init__(self, stages: Sequence[tuple[str, nn.Module]]):
        super().__init__(OrderedDict(stages))


def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
    """Returns the normalisation behind a convolution: batch, groups of 8 channels (or one group), or none.

    Raises ConfigError for any other name.
    """
    if norm not in get_args(Norm):
        raise ConfigError(f"norm={norm!r}: allowed are {', '.join(get_args(Norm))}")
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    if norm == "group":
        return [nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)]
    return []


def conv_block(inputs: int, outputs: int, kernel: int, norm: Norm, stride: int = 1) -> list[nn.Module]:
    """Returns convolution (same padding), normalisation, ReLU."""
    bias = norm == "none"  # a normalisation has its own shift
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias)
    return [conv, *norm_layers(norm, outputs), nn.ReLU(inplace=True)]


class PlaceGrid(nn.Module):
    """Means over a grid of so many places, in a row (B, values)."""

    def __init__(self, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)

    def forward(self, values: Tensor) -> Tensor:
        """Returns (B, places x channels)."""
        if values.dim() == 4:
            values = nn.functional.adaptive_avg_pool2d(values, (self.sides[0], self.sides[1]))
        elif values.dim() == 3:
            values = nn.functional.adaptive_avg_pool1d(values.transpose(1, 2), self.sides[0])
        return values.flatten(1)


def check_images(model: str, input_shape: Sequence[int], classes: int | None, halvings: int) -> tuple[int, int]:
    """Returns channels and classes; ConfigError where images (C, H, W) are too small for so many halvings."""
    if len(input_shape) != 3:
        raise ConfigError(
            f"{model} takes images (channels, height, width), not inputs of shape {tuple(input_shape)}; use model=mlp"
        )
    if min(input_shape[1:]) < 2**halvings:
        raise ConfigError(
            f"{model} halves images {halvings} times and needs at least {2**halvings} pixels a side; these are "
            f"{input_shape[1]}x{input_shape[2]}: use a smaller model, or data.size={2**halvings} with data=images"
        )
    return input_shape[0], check_classes(model, classes)


def check_classes(model: str, classes: int | None) -> int:
    """Returns the number of outputs; ConfigError where it is unknown."""
    if classes is None or classes < 1:
        raise ConfigError(
            f"{model} needs the number of classes (classes={classes}); give how many outputs it is to have"
        )
    return classes


def dropout_layers(dropout: float) -> list[nn.Module]:
    """Returns a new dropout layer, or none for probability 0; ConfigError outside of [0, 1).

    Every place needs a new one: one object on both sides of a cut would put both segments into the mode set last.
    """
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout={dropout}: a probability in [0, 1)")
    return [nn.Dropout(dropout)] if dropout else []


def flat_size(stages: Sequence[tuple[str, nn.Module]], input_shape: Sequence[int]) -> int:
    """Returns the number of values that these stages make of an image."""
    layers = nn.Sequential(OrderedDict(stages)).eval()
    with torch.no_grad():
        size = layers(torch.zeros(1, *input_shape)).numel()
    layers.train()
    return size
