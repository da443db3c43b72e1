"""LeNet-5 (LeCun et al. 1998), with ReLU and max-pooling as the SplitFed literature uses it."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from fsl.argument_types import checks_types
from fsl.models.layers import Norm, Stages, check_images, conv_block, dropout_layers, flat_size


@checks_types()
class LeNet(Stages):
    """conv1 (C6), pool1, conv2 (C16), pool2, fc1 (120), fc2 (84), head. Cut: after the second layer, pool1.

    Convolutions are padded, so that images down to 4x4 pixels pass. Source of the cut: Thapa et al. 2022 (recalled).
    """

    default_cut: ClassVar[str] = "pool1"

    def __init__(self, input_shape: Sequence[int], classes: int | None, norm: Norm = "none", dropout: float = 0.0):
        channels, classes = check_images("LeNet", input_shape, classes, halvings=2)
        stages: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Sequential(*conv_block(channels, 6, 5, norm))),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Sequential(*conv_block(6, 16, 5, norm))),
            ("pool2", nn.MaxPool2d(2)),
        ]
        flat = flat_size(stages, input_shape)
        super().__init__(
            [
                *stages,
                (
                    "fc1",
                    nn.Sequential(nn.Flatten(), nn.Linear(flat, 120), nn.ReLU(inplace=True), *dropout_layers(dropout)),
                ),
                ("fc2", nn.Sequential(nn.Linear(120, 84), nn.ReLU(inplace=True), *dropout_layers(dropout))),
                ("head", nn.Linear(84, classes)),
            ]
        )
