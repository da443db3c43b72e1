"""AlexNet (Krizhevsky et al. 2012) for small images: 3x3 convolutions and smaller linear layers."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from fsl.argument_types import checks_types
from fsl.models.layers import Norm, Stages, check_images, conv_block, dropout_layers, flat_size


@checks_types()
class AlexNet(Stages):
    """Five convolutions, three pools, two linear layers. Cut: after the second layer, pool1 (Thapa et al., recalled).

    Stages: conv1, pool1, conv2, pool2, conv3, conv4, conv5, pool3, fc1, fc2, head.
    """

    default_cut: ClassVar[str] = "pool1"

    def __init__(self, input_shape: Sequence[int], classes: int | None, norm: Norm = "none", dropout: float = 0.5):
        channels, classes = check_images("AlexNet", input_shape, classes, halvings=3)
        stages: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Sequential(*conv_block(channels, 64, 3, norm))),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Sequential(*conv_block(64, 192, 3, norm))),
            ("pool2", nn.MaxPool2d(2)),
            ("conv3", nn.Sequential(*conv_block(192, 384, 3, norm))),
            ("conv4", nn.Sequential(*conv_block(384, 256, 3, norm))),
            ("conv5", nn.Sequential(*conv_block(256, 256, 3, norm))),
            ("pool3", nn.MaxPool2d(2)),
        ]
        flat = flat_size(stages, input_shape)
        super().__init__(
            [
                *stages,
                (
                    "fc1",
                    nn.Sequential(nn.Flatten(), *dropout_layers(dropout), nn.Linear(flat, 1024), nn.ReLU(inplace=True)),
                ),
                ("fc2", nn.Sequential(*dropout_layers(dropout), nn.Linear(1024, 512), nn.ReLU(inplace=True))),
                ("head", nn.Linear(512, classes)),
            ]
        )
