"""An objective in fewer digits: its loss is computed under autocast, and its gradients are scaled in float16."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsl.objective.objective_base import Objective
from fsl.segments.precision import Precision, computing, loss_scale, scaled


class InPrecision(Objective):
    """Computes `objective` where torch's autocast says in which precision; losses come out as float32 at least.

    In float16 the gradients that come out of a loss are `LOSS_SCALE` times as large, as small ones would be zero; a
    learner divides by it before it steps.
    """

    def __init__(self, objective: Objective, precision: Precision, accelerator: torch.device):
        self.inner = objective
        self.ignored, self.ignores = objective.ignored, objective.ignores
        self._precision = precision
        self._accelerator = accelerator

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Returns the mean loss over a batch, a scalar."""
        with computing(self._precision, self._accelerator):
            return self._told(self.inner.loss(outputs, targets))

    def losses(self, outputs: Sequence[Any], targets: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the mean loss of each of several batches."""
        with computing(self._precision, self._accelerator):
            return [self._told(loss) for loss in self.inner.losses(outputs, targets)]

    def rows(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """Returns the loss of each row (B,), or None."""
        with computing(self._precision, self._accelerator):
            rows = self.inner.rows(outputs, targets)
        return None if rows is None else self._told(rows)

    def weight(self, targets: Tensor) -> float:
        """Returns the weight of a batch's `loss` in a mean over batches."""
        return self.inner.weight(targets)

    def correct(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """Returns the number of right answers, or None."""
        return self.inner.correct(outputs, targets)

    def scored(self, targets: Tensor) -> int:
        """Returns the number of targets that `correct` is out of."""
        return self.inner.scored(targets)

    def divergence_bound(self, classes: int | None) -> float | None:
        """Returns the training loss above which a run has diverged."""
        return self.inner.divergence_bound(classes)

    def _told(self, loss: Tensor) -> Tensor:
        wide = loss.to(torch.promote_types(loss.dtype, torch.float32)) if loss.is_floating_point() else loss
        return scaled(wide, loss_scale(self._precision))
