"""What training minimises, and how outputs are scored: a pluggable objective."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


class Objective(ABC):
    """A loss as a mean over rows, and optionally a score per row."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the rows of a batch, a scalar."""

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """The loss of each row (B,), whose mean is `loss`; None where it cannot be told row by row.

        It saves a pooled step a loss per device.
        """
        return None

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """How many rows are right (a scalar; accuracy is its mean), or None where accuracy has no meaning."""
        return None


class CrossEntropy(Objective):
    """Classification: outputs are logits (B, classes), targets class labels (B,) int64."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each row, a mean over its further dimensions."""
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses.flatten(1).mean(1) if losses.dim() > 1 else losses

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The rows whose largest logit is the label."""
        return (outputs.argmax(dim=-1) == targets).sum()


class LossFunction(Objective):
    """Any `loss(outputs, targets)` that returns a mean over rows, such as `torch.nn.MSELoss()`; no accuracy."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        self.function = function

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The function's value."""
        return self.function(outputs, targets)


def as_objective(objective: "Objective | Callable[[Tensor, Tensor], Tensor] | None") -> Objective:
    """The objective itself, a plain loss function wrapped, or the default, cross-entropy."""
    if objective is None:
        return CrossEntropy()
    return objective if isinstance(objective, Objective) else LossFunction(objective)
