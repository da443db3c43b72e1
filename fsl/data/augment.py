"""Augments batches of images, as tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fsl.argument_types import checks_types
from fsl.errors import ConfigError


@checks_types("augment.")
@dataclass(frozen=True)
class Augmentation:
    """Random crops of the image padded by `crop` zeros on each side, and horizontal flips (half of the images)."""

    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise ConfigError(f"augment.crop={self.crop}: the pixels of padding cannot be negative")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch (B, C, H, W), with all draws from `generator`, and one gather for the whole batch."""
        if inputs.dim() != 4:
            raise ConfigError(f"augment wants image batches (B, C, H, W), not {tuple(inputs.shape)}; turn it off")
        count, _, height, width = inputs.shape
        offsets = torch.randint(2 * self.crop + 1, (2, count, 1), generator=generator)
        rows = offsets[0] + torch.arange(height)
        columns = torch.arange(width).expand(count, width)
        if self.flip:
            flipped = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(flipped, width - 1 - columns, columns)
        columns = columns + offsets[1]
        padded = F.pad(inputs, (self.crop,) * 4)
        every = torch.arange(count)[:, None, None]
        return padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
