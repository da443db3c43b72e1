"""A model of two branches, of pictures and of tones, whose activations advance side by side."""

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.models.layers import PlaceGrid, conv_block


@checks_types()
class PictureAndTone(nn.Module):
    """Two branches, of pictures and of tones, that advance side by side in `stage1` and `stage2`; a classifier of both.

    Forward takes `picture` (B, 1, H, W) and `tone` (B, 1, F, T). Behind each of the stages both branches pass.
    """

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stage1 = _SideBySide(conv_block(1, width, 3, "batch"), conv_block(1, width, 3, "batch", 2))
        self.stage2 = _SideBySide(
            conv_block(width, 2 * width, 3, "batch", 2), conv_block(width, 2 * width, 3, "batch", 2)
        )
        self.head = _OfBoth(2 * width, classes)

    def forward(self, picture: Tensor, tone: Tensor) -> Tensor:
        """Returns logits (B, classes)."""
        return self.head(self.stage2(self.stage1((picture, tone))))


class _SideBySide(nn.Module):
    """It takes and gives a pair, so that `torch.fx` need not take one apart where the model is cut."""

    def __init__(self, picture: list[nn.Module], tone: list[nn.Module]) -> None:
        super().__init__()
        self.picture, self.tone = nn.Sequential(*picture), nn.Sequential(*tone)

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.picture(both[0]), self.tone(both[1])


class _OfBoth(nn.Module):
    """Means over grids that keep where a picture is bright, and which pitches sound; a linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.picture, self.tone = PlaceGrid((4, 4)), PlaceGrid((8, 2))
        self.classifier = nn.Linear(channels * (4 * 4 + 8 * 2), classes)

    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        return self.classifier(torch.cat([self.picture(both[0]), self.tone(both[1])], dim=1))
