"""Puts a narrow encoder and its decoder in the place of a model's first layers (BottleFit)."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError


class BottleFit(nn.Sequential):
    """Stages: encoder, decoder, then those of the first model behind `replaced`, by their names. Cut: after encoder."""

    default_cut: ClassVar[str] = "encoder"
    encoder: nn.Sequential
    decoder: nn.Sequential
    replaced: str


@checks_types()
def bottlefit(
    model: nn.Sequential, replace: str, input_shape: Sequence[int], channels: int = 12, width: int = 512
) -> BottleFit:
    """Returns a new model: encoder, decoder, and a copy of the stages of `model` behind the one named `replace`.

    `input_shape` (3 or another number of channels, H, W): of one image. `channels`: of the codes, 3 to 12 in the paper;
    codes are (B, channels, H / 8 + 1, W / 8 + 1), 29 x 29 for 224 pixels, in 8 bits each. `width`: channels between
    the decoder's layers. New weights are drawn from torch's generator; the model is in training mode.

    Encoder: convolution 7 of stride 2 to 64 channels, BatchNorm, ReLU, max-pool 3 of stride 2, BatchNorm, ReLU,
    convolution 2 of stride 2 to the codes, quantizer. Decoder: BatchNorm, ReLU, convolutions 2, the first two padded
    by 1, with BatchNorm and ReLU between them, average pool. Where it deviates from the paper: its decoder makes 512
    channels at an eighth of the image's side, for a ResNet-50's layer2; here the last convolution makes the channels,
    and the pool the sides, that the next stage expects, and which are the same in the paper's case. The released
    quantizer is bypassed in training; this one is trained through.

    ConfigError for a model without such stages, for images of less than 16 pixels, and for what is no image behind
    `replace`. Matsubara et al. 2022, "BottleFit: Learning Compressed Representations in Deep Neural Networks for
    Effective and Efficient Split Computing" (arXiv 2201.02693).
    """
    names = [name for name, _ in model.named_children()]
    if replace not in names[:-1]:
        raise ConfigError(f"replace={replace!r}: name a stage that others follow: {', '.join(names[:-1])}")
    if channels < 1 or width < 1:
        raise ConfigError(f"channels={channels!r}, width={width!r}: both are 1 or more")
    if len(input_shape) != 3 or min(input_shape[1:]) < 16:
        raise ConfigError(f"input_shape={tuple(input_shape)}: give that of an image (C, H, W) of at least 16 pixels")
    behind = names.index(replace) + 1
    wanted = _shape_of(nn.Sequential(*list(copy.deepcopy(model))[:behind]), input_shape)
    if len(wanted) != 4:
        raise ConfigError(f"replace={replace!r}: it gives {tuple(wanted)}, and a decoder makes images (B, C, H, W)")
    rest = list(copy.deepcopy(model).named_children())[behind:]
    taken = {"encoder", "decoder"} & {name for name, _ in rest}
    if taken:
        raise ConfigError(f"bottlefit names its own stages encoder and decoder; rename the model's {taken.pop()}")
    encoder, decoder = _encoder(input_shape[0], channels), _decoder(channels, width, wanted)
    place = _place_of(model)
    made = BottleFit(OrderedDict([("encoder", encoder.to(place)), ("decoder", decoder.to(place)), *rest]))
    made.replaced = replace
    return made.train()


class EightBits(nn.Module):
    """Rounds each sample's values to 256 levels from its smallest to its largest; the gradient goes straight through.

    A sample's payload is a byte a value, and two floats: where its levels begin, and how far apart they are.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Returns values (B, ...) of the same shape."""
        rows = values.detach().flatten(1)
        low, high = rows.aminmax(dim=1, keepdim=True)
        step = ((high - low) / 255).clamp_min(torch.finfo(rows.dtype).tiny)
        rounded = (low + ((rows - low) / step).round() * step).view_as(values)
        return values + (rounded - values).detach()


def _encoder(colours: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(colours, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, channels, 2, 2, 1, bias=False),
        EightBits(),
    )


def _decoder(channels: int, width: int, wanted: torch.Size) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, padding in ((channels, width, 1), (width, width, 1), (width, width, 0), (width, wanted[1], 0)):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 2, 1, padding, bias=False)]
    pool = nn.AdaptiveAvgPool2d((wanted[2], wanted[3]))  # of windows 2 and stride 1, where that gives these sides
    return nn.Sequential(*layers, pool)


def _shape_of(stages: nn.Module, input_shape: Sequence[int]) -> torch.Size:
    with torch.no_grad():
        return torch.Size(stages.eval()(torch.zeros(1, *input_shape, device=_place_of(stages))).shape)


def _place_of(model: nn.Module) -> torch.device:
    """Returns the accelerator of a model's weights."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
