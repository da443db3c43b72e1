"""GhostNet (Han et al., CVPR 2020, arXiv 1911.11907): bottlenecks of Ghost modules."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.ghost_module import GhostModule
from fsl.models.layers import Stages, check_images

# Table 1 of the paper: kernel, expansion, outputs, squeeze-and-excitation, stride.
_BLOCKS = (
    (3, 16, 16, False, 1),
    (3, 48, 24, False, 2),
    (3, 72, 24, False, 1),
    (5, 72, 40, True, 2),
    (5, 120, 40, True, 1),
    (3, 240, 80, False, 2),
    (3, 200, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 480, 112, True, 1),
    (3, 672, 112, True, 1),
    (5, 672, 160, True, 2),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
)
_STEM, _LAST, _HIDDEN = 16, 960, 1280


@checks_types()
class GhostNet(Stages):
    """GhostNet of table 1, for images of at least 32 pixels a side; at 224 pixels its counts are the paper's.

    Stages: stem, block1 ... block16, features (960 maps), head. `width`: of all layers but the last two, 1.0 or 1.3 in
    the paper. The default cut, behind block5 (40 maps of an eighth of the image's side), is fsl's choice.
    """

    default_cut: ClassVar[str] = "block5"

    def __init__(self, input_shape: Sequence[int], classes: int | None, width: float = 1.0, dropout: float = 0.2):
        channels, classes = check_images("GhostNet", input_shape, classes, halvings=5)
        if not width > 0:
            raise ConfigError(f"width={width}: it is above 0; the paper has 0.5, 1.0 and 1.3")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout={dropout}: a probability in [0, 1)")
        inputs = _fours(_STEM * width)
        stages: list[tuple[str, nn.Module]] = [("stem", _conv(channels, inputs, 3, 2))]
        for number, (kernel, expansion, outputs, squeezes, stride) in enumerate(_BLOCKS, start=1):
            wide, narrow = _fours(expansion * width), _fours(outputs * width)
            stages.append((f"block{number}", GhostBottleneck(inputs, wide, narrow, kernel, stride, squeezes)))
            inputs = narrow
        last = _fours(_LAST * width)
        head = [
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(last, _HIDDEN, 1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(_HIDDEN, classes),
        ]
        super().__init__([*stages, ("features", _conv(inputs, last, 1, 1)), ("head", nn.Sequential(*head))])


class GhostBottleneck(nn.Module):
    """Two Ghost modules beside a shortcut, (B, inputs, H, W) -> (B, outputs, H/stride, W/stride).

    The first widens to `expansion` maps; a depthwise convolution between them makes the stride, and squeeze-and-
    excitation weighs maps. The second has no ReLU (section 3.2 and figure 3).
    """

    def __init__(self, inputs: int, expansion: int, outputs: int, kernel: int, stride: int, squeezes: bool):
        super().__init__()
        layers: list[nn.Module] = [GhostModule(inputs, expansion)]
        if stride > 1:
            layers += [*_depthwise(expansion, kernel, stride)]
        if squeezes:
            layers.append(SqueezeExcitation(expansion))
        layers.append(GhostModule(expansion, outputs, behind=_batch_alone))
        self.body = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            pointwise = [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.shortcut = nn.Sequential(*_depthwise(inputs, kernel, stride), *pointwise)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the sum of body and shortcut."""
        return self.body(inputs) + self.shortcut(inputs)


class SqueezeExcitation(nn.Module):
    """Weighs maps (B, channels, H, W) by what all their means say (Hu et al. 2018), a quarter of them in between."""

    def __init__(self, channels: int):
        super().__init__()
        few = _fours(channels / 4)
        reduce, expand = nn.Conv2d(channels, few, 1), nn.Conv2d(few, channels, 1)
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), reduce, nn.ReLU(inplace=True), expand, nn.Hardsigmoid(inplace=True)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Returns the maps, each times its weight."""
        return maps * self.weights(maps)


def _batch_alone(channels: int) -> Sequence[nn.Module]:
    return (nn.BatchNorm2d(channels),)


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _depthwise(channels: int, kernel: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def _fours(channels: float) -> int:
    """Returns the multiple of 4 that is nearest, and no less than nine tenths of what was asked for."""
    found = max(4, int(channels + 2) // 4 * 4)
    return found + 4 if found < 0.9 * channels else found
