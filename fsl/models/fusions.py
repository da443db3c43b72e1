"""Makes one input for a back of what several parties send: vertical split learning, with rules for missing parties.

Ceballos et al. 2020, "SplitNN-driven Vertical Partitioning" (arXiv 2008.04137) compares merging by concatenation, sum,
average, maximum and product; attention weighs parties by what they sent.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError


class Fusion(nn.Module, ABC):
    """Fuses the smashed data of those parties that sent some; its parameters are the back's.

    `missing` says, in words, what a party counts as that sent nothing.
    """

    missing: ClassVar[str]
    needs_shapes: ClassVar[bool] = False  # whether it must know what a missing party would have sent

    @abstractmethod
    def forward(self, smashed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Tensor:
        """Returns one tensor (B, ...) from smashed data (B, ...) by party, in the order of the model's parties.

        `shapes` has, for every party, the shape of its smashed data without the batch dimension; empty where nobody
        has measured them and none is needed.
        """


class Concatenation(Fusion):
    """All parties behind each other, along the first dimension after the batch; zeros for a missing one."""

    missing = "zeros"
    needs_shapes = True

    def forward(self, smashed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Tensor:
        """Returns (B, sum of widths, ...)."""
        some = next(iter(smashed.values()))
        everybody = shapes or smashed
        parts = [
            smashed[party] if party in smashed else some.new_zeros(len(some), *shapes[party]) for party in everybody
        ]
        _refuse_unlike([part.shape[2:] for part in parts], list(everybody), "beside the first dimension")
        return torch.cat([_Apart.apply(part) for part in parts], dim=1)


class _Apart(torch.autograd.Function):
    """Gives each part a gradient in memory of its own, as one that came over a wire is: kernels then round alike."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return part.view_as(part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class _Elementwise(Fusion):
    def forward(self, smashed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Tensor:
        """Returns (B, ...) of the shape that all parties send."""
        _refuse_unlike([values.shape for values in smashed.values()], list(smashed), "with this fusion")
        return self.merged(torch.stack(list(smashed.values())))

    @abstractmethod
    def merged(self, parties: Tensor) -> Tensor:
        """Returns (B, ...) from (parties that are there, B, ...)."""


class Sum(_Elementwise):
    """The sum over parties; a missing one counts as zeros."""

    missing = "zeros"

    def merged(self, parties: Tensor) -> Tensor:
        """Returns the sum."""
        return parties.sum(dim=0)


class Mean(_Elementwise):
    """The average over the parties that are there."""

    missing = "nothing: the average is over the others"

    def merged(self, parties: Tensor) -> Tensor:
        """Returns the average."""
        return parties.mean(dim=0)


class Max(_Elementwise):
    """The largest value over the parties that are there."""

    missing = "nothing: the maximum is over the others"

    def merged(self, parties: Tensor) -> Tensor:
        """Returns the maximum; its gradient goes to the party that it came from."""
        return parties.max(dim=0).values


class Product(_Elementwise):
    """The product over parties; a missing one counts as ones."""

    missing = "ones"

    def merged(self, parties: Tensor) -> Tensor:
        """Returns the product."""
        ones = torch.ones_like(parties[0])  # `prod` forbids a back that begins in place
        return reduce(torch.mul, parties.unbind(), ones)


@checks_types()
class Attention(_Elementwise):
    """A weighted average, whose weights come from what each party sent; a missing one is masked out.

    Weights are a softmax over parties of v' tanh(W z), as in additive attention (Bahdanau et al. 2015).
    """

    missing = "nothing: it is masked, and the weights of the others add up to 1"

    def __init__(self, width: int, hidden: int = 16):
        """`width`: the size of the last dimension of what each party sends; `hidden`: that of W z."""
        super().__init__()
        if width < 1 or hidden < 1:
            raise ConfigError(f"Attention(width={width}, hidden={hidden}): both are sizes of at least 1")
        self.inner = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def merged(self, parties: Tensor) -> Tensor:
        """Returns the weighted average."""
        if parties.shape[-1] != self.inner.in_features:
            raise ConfigError(
                f"fusion=Attention(width={self.inner.in_features}): the parties send {parties.shape[-1]} values a row; "
                "give that width"
            )
        weights = torch.softmax(self.score(torch.tanh(self.inner(parties))), dim=0)
        return (weights * parties).sum(dim=0)


_NAMED: Mapping[str, type[Fusion]] = {
    "concatenation": Concatenation,
    "sum": Sum,
    "mean": Mean,
    "max": Max,
    "product": Product,
}


def as_fusion(given: "Fusion | type[Fusion] | str") -> Fusion:
    """Returns a fusion from an object, a class without arguments, or a name; ConfigError for anything else."""
    if isinstance(given, Fusion):
        return given
    if isinstance(given, type) and issubclass(given, Fusion):
        try:
            return given()
        except TypeError as error:
            raise ConfigError(f"fusion={given.__name__}: it needs arguments ({error}); give an object of it") from None
    if isinstance(given, str) and given in _NAMED:
        return _NAMED[given]()
    if given == "attention":
        raise ConfigError(
            "fusion='attention': it has parameters, whose sizes depend on the fronts; give "
            "fsl.models.Attention(width=...), the number of values that each party sends"
        )
    raise ConfigError(
        f"fusion={given!r}: it is one of {', '.join(_NAMED)}, or an fsl.models.Fusion such as Attention(width=16)"
    )


def _refuse_unlike(shapes: Sequence[torch.Size], parties: Sequence[str], where: str) -> None:
    for party, shape in zip(parties, shapes, strict=True):
        if shape != shapes[0]:
            raise ConfigError(
                f"party '{party}' sends smashed data of shape {tuple(shape)} and '{parties[0]}' of {tuple(shapes[0])}, "
                f"which must be alike {where}; make the fronts end alike, or use fusion='concatenation'"
            )
