"""Residual networks (He et al., CVPR 2016) with the 3x3 stem for small images."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.models.layers import Norm, Stages, check_images, conv_block, norm_layers


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, (B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm):
        super().__init__()
        second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=norm == "none")
        self.body = nn.Sequential(*conv_block(inputs, outputs, 3, norm, stride), second, *norm_layers(norm, outputs))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=norm == "none")
            self.shortcut = nn.Sequential(conv, *norm_layers(norm, outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the sum of body and shortcut."""
        return self.relu(self.body(inputs) + self.shortcut(inputs))


@checks_types()
class _ResNet(Stages):
    """Stages: stem, block1 ... block<n>, head. SplitFed cuts behind the stem and the first block."""

    default_cut: ClassVar[str] = "block1"
    _WIDTHS: ClassVar[tuple[int, ...]]
    _DEPTH: ClassVar[int]

    def __init__(self, input_shape: Sequence[int], classes: int | None, norm: Norm = "batch"):
        name = type(self).__name__
        channels, classes = check_images(name, input_shape, classes, halvings=len(self._WIDTHS) - 1)
        width = self._WIDTHS[0]
        stages: list[tuple[str, nn.Module]] = [("stem", nn.Sequential(*conv_block(channels, width, 3, norm)))]
        for group, outputs in enumerate(self._WIDTHS):
            for index in range(self._DEPTH):
                stride = 2 if group and not index else 1
                stages.append((f"block{len(stages)}", ResidualBlock(width, outputs, stride, norm)))
                width = outputs
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
        super().__init__([*stages, ("head", head)])


class ResNet8(_ResNet):
    """Three residual blocks of 16, 32 and 64 channels (He et al. 2016, section 4.2, n=1). Cut: after block1."""

    _WIDTHS = (16, 32, 64)
    _DEPTH = 1


class ResNet18(_ResNet):
    """Eight residual blocks, two each of 64, 128, 256 and 512 channels. Cut: after block1 (Thapa et al. 2022)."""

    _WIDTHS = (64, 128, 256, 512)
    _DEPTH = 2
