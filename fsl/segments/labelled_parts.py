"""Parts of a segment that learn from a batch's labels by losses of their own, beside what the model is trained for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn


class Judges(Protocol):
    """An objective, as far as parts of a segment need it."""

    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        """Returns the mean loss over a batch."""


LossOf = Callable[[Tensor], Tensor]  # outputs (B, ...) -> the mean loss of a batch whose labels it knows


class LabelledPart:
    """A module that has a loss of its own: it is told a batch's labels for a forward pass, as `loss_of`.

    `heard`: in evaluation, a list that takes what its own outputs (B, ...) are; None: they are not computed.
    """

    loss_of: LossOf | None = None
    heard: list[Tensor] | None = None


def labelled_parts(*modules: nn.Module) -> tuple[LabelledPart, ...]:
    """Returns the parts of modules that learn by losses of their own, each once."""
    found = (one for module in modules for one in module.modules() if isinstance(one, LabelledPart))
    return tuple({id(one): one for one in found}.values())


def loss_by(objective: Judges, targets: Tensor) -> LossOf:
    """Returns what an objective makes of outputs for these targets (B, ...)."""
    return lambda outputs: objective.loss(outputs, targets)


@contextmanager
def told(parts: Sequence[LabelledPart], loss_of: LossOf | None) -> Iterator[None]:
    """Tell parts the labels of the batch that goes forward meanwhile."""
    if not parts:
        yield
        return
    for part in parts:
        part.loss_of = loss_of
    try:
        yield
    finally:
        for part in parts:
            part.loss_of = None


@contextmanager
def heard(parts: Iterable[LabelledPart]) -> Iterator[tuple[list[Tensor], ...]]:
    """Have parts compute their outputs meanwhile; each list takes those of one part, a batch after the other."""
    given = tuple(parts)
    lists: tuple[list[Tensor], ...] = tuple([] for _ in given)
    for part, one in zip(given, lists):
        part.heard = one
    try:
        yield lists
    finally:
        for part in given:
            part.heard = None
