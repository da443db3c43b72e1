"""What training minimises, and how outputs are scored."""

import math
from abc import ABC, abstractmethod
from copy import copy
from typing import ClassVar, Self

from torch import Tensor


class Objective(ABC):
    """A loss as a mean over what it counts, and how outputs are scored; one of your own overrides what it needs.

    What an objective declares, everything else goes by: means over batches (`weight`), accuracy (`correct` out of
    `scored`), pictures of classes and labels over the wire (`classes`), when a run has diverged (`divergence_bound`),
    and what is refused before a run begins (`check`, `check_targets`).
    """

    takes_classes: ClassVar[bool] = False  # targets name classes, one for each sample or for each of its parts
    ignored: int | None = None  # the target that counts for nothing; None: there is none
    ignores: bool = False  # whether some targets are that one

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over a batch, a scalar: outputs (B, ...), targets (B, ...)."""

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """The loss of each row (B,), whose mean is `loss`; None where it cannot be told row by row.

        It saves a pooled step a loss per device.
        """
        return None

    def weight(self, targets: Tensor) -> float:
        """What a batch's `loss` counts in a mean over batches: its rows, or what it was really divided by."""
        return float(len(targets))

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """How many targets are right (a scalar), or None where accuracy has no meaning."""
        return None

    def scored(self, targets: Tensor) -> int:
        """How many targets `correct` is out of: the rows, unless samples have several or some are ignored."""
        return len(targets)

    def classes(self, targets: Tensor, outputs: Tensor | None = None) -> int | None:
        """How many classes there are, from all targets (N, ...) or a batch's outputs; None: targets are no classes."""
        return None

    def divergence_bound(self, classes: int | None) -> float | None:
        """The training loss above which a run has diverged, if it stays there; None: only when it is not finite."""
        return None

    def fitted(self, targets: Tensor, outputs: Tensor | None = None) -> dict[str, object]:
        """Constructor arguments that all targets (N, ...) and a batch's outputs ask for; none as a rule."""
        return {}

    def fit(self, targets: Tensor, outputs: Tensor | None = None) -> Self:
        """The objective with what `fitted` asks for: itself, where that is nothing."""
        asked = self.fitted(targets, outputs)
        if not asked:
            return self
        found = copy(self)
        vars(found).update(asked)
        return found

    def width(self, targets: Tensor) -> int | None:
        """How many outputs a model needs for one sample, from all targets (N, ...): one for each number of a target.

        None: the loss does not say.
        """
        return math.prod(targets.shape[1:]) if targets.is_floating_point() else None

    def check(self, outputs: Tensor, targets: Tensor) -> None:  # noqa: B027 - most have nothing to ask
        """ConfigError where a batch's outputs and targets do not fit this loss, though torch might compute one."""

    def check_targets(self, outputs: Tensor, targets: Tensor, which: str) -> None:  # noqa: B027 - the same
        """ConfigError for values that no target may have, of all targets (N, ...) of the `which` data; one pass."""


def shape_of(tensor: Tensor) -> str:
    """A batch's shape in words, its rows as B: `(B, 3)`."""
    return f"({', '.join(['B', *map(str, tensor.shape[1:])])}{',' if tensor.dim() == 1 else ''})"
