"""VGG5 with a front of signs, for binarized split learning."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from fsl.argument_types import checks_types
from fsl.models.binarized import binarized
from fsl.models.layers import Stages
from fsl.models.vgg import VGG5


@checks_types()
class BinaryVGG5(Stages):
    """FedFly's VGG5, binarized up to the stage `upto`: see `fsl.models.binarized`. Cut: the same stage, pool2.

    Up to there every convolution has a batch normalisation; the stages behind it are those of VGG5, without. With
    `norm="group"` all convolutions have a group normalisation, and samples stay apart, as noise at the cut demands.
    """

    default_cut: ClassVar[str] = "pool2"

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int | None,
        upto: str = "pool2",
        norm: Literal["batch", "group"] = "batch",
        dropout: float = 0.0,
    ):
        # Where a model has no normalisation, `binarized` puts that of batches.
        model = binarized(
            VGG5(input_shape, classes, norm="group" if norm == "group" else "none", dropout=dropout), upto
        )
        super().__init__(list(model.named_children()))
