"""VGG networks (Simonyan & Zisserman, ICLR 2015) for small images."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from fsl.argument_types import checks_types
from fsl.models.layers import Norm, Stages, check_images, conv_block, dropout_layers, flat_size


@checks_types()
class VGG5(Stages):
    """FedFly's VGG5: C32-M-C64-M-C64-FC128-FC10, 3x3 convolutions (Ullah et al. 2022).

    Stages: conv1, pool1, conv2, pool2, conv3, fc1, head. The paper's cuts: after the first pool (pool1), after the
    second (pool2, the default), after the third convolution (conv3).
    """

    default_cut: ClassVar[str] = "pool2"

    def __init__(self, input_shape: Sequence[int], classes: int | None, norm: Norm = "none", dropout: float = 0.0):
        channels, classes = check_images("VGG5", input_shape, classes, halvings=2)
        stages: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Sequential(*conv_block(channels, 32, 3, norm))),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Sequential(*conv_block(32, 64, 3, norm))),
            ("pool2", nn.MaxPool2d(2)),
            ("conv3", nn.Sequential(*conv_block(64, 64, 3, norm))),
        ]
        flat = flat_size(stages, input_shape)
        super().__init__(
            [
                *stages,
                (
                    "fc1",
                    nn.Sequential(nn.Flatten(), nn.Linear(flat, 128), nn.ReLU(inplace=True), *dropout_layers(dropout)),
                ),
                ("head", nn.Linear(128, classes)),
            ]
        )


@checks_types()
class VGG16(Stages):
    """VGG16's thirteen convolutions with one linear layer behind them, as usual for 32x32 images.

    Stages: conv1 ... conv13, with a pool<block> behind the 2nd, 4th, 7th, 10th and 13th convolution, then head. The
    default cut is after the fourth layer, conv3 (conv1, conv2, pool1, conv3; Thapa et al. 2022, recalled).
    """

    default_cut: ClassVar[str] = "conv3"
    _BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions

    def __init__(self, input_shape: Sequence[int], classes: int | None, norm: Norm = "batch", dropout: float = 0.0):
        channels, classes = check_images("VGG16", input_shape, classes, halvings=5)
        stages: list[tuple[str, nn.Module]] = []
        convolution = 0
        for block, (width, depth) in enumerate(self._BLOCKS, start=1):
            for _ in range(depth):
                convolution += 1
                stages.append((f"conv{convolution}", nn.Sequential(*conv_block(channels, width, 3, norm))))
                channels = width
            stages.append((f"pool{block}", nn.MaxPool2d(2)))
        flat = flat_size(stages, input_shape)
        super().__init__(
            [*stages, ("head", nn.Sequential(nn.Flatten(), *dropout_layers(dropout), nn.Linear(flat, classes)))]
        )
