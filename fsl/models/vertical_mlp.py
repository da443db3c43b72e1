"""Multilayer perceptrons over several parties' features, sized by the data."""

from collections.abc import Mapping, Sequence
from math import prod

from torch import nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, one_of
from fsl.models.fusions import Attention, Fusion
from fsl.models.layers import check_classes
from fsl.models.vertical_model import VerticalModel

_FUSIONS = ("concatenation", "sum", "mean", "max", "product", "attention")


@checks_types()
class VerticalMLP(VerticalModel):
    """A front of one hidden layer for each party, a fusion, and a back of linear layers with ReLU.

    `party_shapes`: the shape of one row of each party's features. `width`: values that a party sends for a row.
    """

    def __init__(
        self,
        party_shapes: Mapping[str, Sequence[int]],
        classes: int | None,
        fusion: str = "concatenation",
        width: int = 16,
        hidden: Sequence[int] = (16,),
    ):
        one_of("fusion", fusion, _FUSIONS)
        if width < 1 or any(size < 1 for size in hidden):
            raise ConfigError(
                f"width={width}, hidden={hidden}: widths of layers are at least 1, as width=16 hidden=[16]"
            )
        fronts = {
            party: nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), width), nn.ReLU())
            for party, shape in party_shapes.items()
        }
        merge: Fusion | str = Attention(width) if fusion == "attention" else fusion
        sizes = [width * len(fronts) if fusion == "concatenation" else width, *hidden]
        layers = [layer for one, other in zip(sizes, sizes[1:]) for layer in (nn.Linear(one, other), nn.ReLU())]
        head = nn.Linear(sizes[-1], check_classes("VerticalMLP", classes))
        super().__init__(fronts, nn.Sequential(*layers, head), merge)
