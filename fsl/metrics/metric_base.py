"""Defines a metric: a figure of an evaluation, accumulated batch by batch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fsl.objective import Predictions


@dataclass(frozen=True)
class Scored:
    """A batch of an evaluation, on the CPU: outputs (B, ...), targets (B, ...), and what they predict, if known."""

    outputs: Tensor
    targets: Tensor
    predictions: Predictions | None


class Metric(ABC):
    """A figure of an evaluation over all of its batches.

    `higher_is_better`: None where nobody says. A run copies a metric for each evaluation, so that it starts empty.
    """

    higher_is_better: bool | None = None

    @abstractmethod
    def update(self, batch: Scored) -> None:
        """Take in a batch."""

    @abstractmethod
    def compute(self) -> float:
        """Returns the figure over all batches; NaN where it has no meaning for them."""

    def refuse(self, batch: Scored) -> None:  # noqa: B027 - some have nothing to refuse
        """Raise ConfigError where it does not fit a task of such batches, in words that follow its name."""
