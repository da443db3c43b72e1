"""The shapes that trained codecs take: images, features and tokens, with some values at each place."""

import math

import torch

from fsl.errors import ConfigError


def channel_axis(dims: int) -> int:
    """Returns the axis of a place's values: the second of images (B, C, H, W), the last of (B, D) and (B, T, D)."""
    return 1 if dims == 4 else dims - 1


def refuse_shape(codec: str, shape: torch.Size) -> None:
    """ConfigError for smashed data that are neither images, nor features, nor tokens, or that are empty."""
    if len(shape) not in (2, 3, 4) or 0 in shape[1:]:
        raise ConfigError(
            f"{codec} takes smashed data (B, C, H, W), (B, D) or (B, T, D), and the cut gives {tuple(shape)}; cut "
            "elsewhere"
        )


def refuse_more(channels: int, stride: int, shape: torch.Size) -> None:
    """ConfigError where codes of so many channels, at every `stride`-th place of an image, outnumber the values."""
    image = len(shape) == 4
    places = math.prod(-(-side // stride) for side in shape[2:]) if image else shape[1:-1].numel()
    if channels * places > shape[1:].numel():
        raise ConfigError(
            f"channels={channels}: a sample of {shape[1:].numel()} values would become {channels * places} codes; give "
            f"fewer channels{', or a larger stride' if image else ''}"
        )
