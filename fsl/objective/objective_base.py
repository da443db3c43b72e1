"""Defines an objective: the loss that training minimises, and the score of outputs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import ClassVar, Self

from torch import Tensor

from fsl.objective.predictions import Predictions


class Objective(ABC):
    """A loss as a mean over targets, and the score of outputs; your own objective overrides what it needs.

    A run relies on what an objective declares: means over batches (`weight`), accuracy (`correct` out of `scored`),
    pictures of classes and labels over the wire (`classes`), divergence (`divergence_bound`), and checks before the run
    (`check`, `check_targets`).
    """

    usual_metrics: ClassVar[tuple[str, ...]] = ()  # computed beside loss and accuracy where a run names no metrics
    takes_classes: ClassVar[bool] = False  # targets name classes, one for each sample or for each of its parts
    ignored: int | None = None  # the target without weight; None: there is none
    counted: bool = False  # whether it was given exact counts of training targets, which no privacy covers
    ignores: bool = False  # whether some targets have that value

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss over a batch, a scalar: outputs (B, ...), targets (B, ...)."""

    def losses(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the mean loss of each of several batches, outputs (B, ...) with targets (B, ...)."""
        return [self.loss(one, target) for one, target in zip(outputs, targets, strict=True)]

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Returns the loss of each row (B,), whose mean is `loss`; None where rows have no loss of their own.

        It saves a pooled step one loss per device.
        """
        return None

    def weight(self, targets: Tensor) -> float:
        """Returns the weight of a batch's `loss` in a mean over batches: its rows, or the true divisor."""
        return float(len(targets))

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Returns the number of right answers (a scalar), or None where accuracy has no meaning."""
        return None

    def scored(self, targets: Tensor) -> int:
        """Returns the number of targets that `correct` is out of: by default the rows."""
        return len(targets)

    def predictions(self, outputs: Tensor, targets: Tensor) -> Predictions | None:
        """Returns what a batch's outputs predict, for metrics by name; None: only metrics of the user's own apply."""
        return None

    def classes(self, targets: Tensor, outputs: Tensor | None = None) -> int | None:
        """Returns the number of classes, from all targets (N, ...) or a batch's outputs; None: no classes."""
        return None

    def divergence_bound(self, classes: int | None) -> float | None:
        """Returns the training loss above which, if it stays there, a run has diverged; None: only if not finite."""
        return None

    def fitted(self, targets: Tensor, outputs: Tensor | None = None) -> dict[str, object]:
        """Returns constructor arguments that all targets (N, ...) and a batch's outputs ask for; by default none."""
        return {}

    def fit(self, targets: Tensor, outputs: Tensor | None = None) -> Self:
        """Returns the objective with the arguments of `fitted`: itself, where there are none."""
        asked = self.fitted(targets, outputs)
        if not asked:
            return self
        found = copy(self)
        vars(found).update(asked)
        return found

    def width(self, targets: Tensor) -> int | None:
        """Returns the outputs that a model needs per sample, from all targets (N, ...): one per number of a target.

        None: the loss does not say.
        """
        return math.prod(targets.shape[1:]) if targets.is_floating_point() else None

    def check(self, outputs: Tensor, targets: Tensor) -> None:  # noqa: B027 - most have nothing to ask
        """Raise ConfigError where a batch's outputs and targets do not fit this loss, though torch might take them."""

    def check_targets(self, outputs: Tensor, targets: Tensor, which: str) -> None:  # noqa: B027 - the same
        """Raise ConfigError for invalid values among all targets (N, ...) of the `which` data, in one pass."""


def shape_of(tensor: Tensor) -> str:
    """Returns a batch's shape in words, its rows as B: `(B, 3)`."""
    return f"({', '.join(['B', *map(str, tensor.shape[1:])])}{',' if tensor.dim() == 1 else ''})"
