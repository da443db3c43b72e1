"""Multilayer perceptron."""

from collections.abc import Sequence
from math import prod
from typing import ClassVar

from torch import nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.layers import Stages, check_classes, dropout_layers


@checks_types()
class MLP(Stages):
    """Linear layers with ReLU; stage<i> is the i-th hidden layer, `head` the classifier. Cut: after stage1."""

    default_cut: ClassVar[str] = "stage1"

    def __init__(
        self, input_shape: Sequence[int], classes: int | None, hidden: Sequence[int] = (128,), dropout: float = 0.0
    ):
        if not len(hidden) or min(hidden) < 1:
            raise ConfigError(f"hidden={hidden}: give the width of at least one hidden layer, as in [128]")
        sizes = [prod(input_shape), *hidden]
        stages: list[tuple[str, nn.Module]] = []
        for index, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
            layers: list[nn.Module] = [nn.Flatten()] if index == 0 else []
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), *dropout_layers(dropout)]
            stages.append((f"stage{index + 1}", nn.Sequential(*layers)))
        super().__init__([*stages, ("head", nn.Linear(sizes[-1], check_classes("MLP", classes)))])
