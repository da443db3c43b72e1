"""Poisson draws: a batch may be empty, and its size is private."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsl.objective import Objective
from fsl.segments.labelled_parts import LossOf
from fsl.segments.learner import Learner
from fsl.segments.states import State
from fsl.segments.sums import Total
from fsl.segments.tensor_trees import Values
from fsl.trainers.around import AroundTrainer
from fsl.trainers.edge_trainer import EdgeBench, EdgeTrainer, SharedBack
from fsl.trainers.pooled import Pooled
from fsl.trainers.uploads import Reply, Upload


class EmptyBatchLearner(Learner):
    """A learner that takes batches without rows. `empty_batches`: how many of the next step's batches were empty."""

    empty_batches = 0

    def forward(self, inputs: Values, layer_seed: int, loss_of: LossOf | None = None) -> Any:
        """Returns the segment's output (B, ...) for inputs (B, ...); an empty batch changes no buffer."""
        if len(inputs) or not isinstance(inputs, Tensor):
            return super().forward(inputs, layer_seed, loss_of)
        with torch.no_grad():
            return super().forward(inputs.new_zeros(1, *inputs.shape[1:]), layer_seed)[:0]


class EmptyBatchObjective(Objective):
    """An edge's objective, whose loss of no rows is 0 and has no gradient."""

    def __init__(self, objective: Objective):
        self.inner = objective
        self.ignored, self.ignores = objective.ignored, objective.ignores

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over a batch, a scalar; 0 of an empty one."""
        if len(targets):
            return self.inner.loss(outputs, targets)
        return outputs.new_zeros((), requires_grad=True)

    def losses(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Sequence[Tensor]:
        """The mean loss of each of several batches."""
        if all(len(each) for each in targets):
            return self.inner.losses(outputs, targets)
        return super().losses(outputs, targets)

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """The loss of each row (B,), or None."""
        return self.inner.rows(outputs, targets)

    def weight(self, targets: Tensor) -> float:
        """What a batch's `loss` counts in a mean over batches."""
        return self.inner.weight(targets)


class PoissonBatches(AroundTrainer):
    """Any edge trainer under Poisson sampling (Abadi et al. 2016, Section 2.2: a lot may have any size, 0 too).

    Where one step is over the uploads of several devices (`Pooled`), those without rows take no part in it; but the
    step's noise is divided by what all batches are expected to have, and a step that no rows came for is one of noise
    alone. Others step upload by upload, and their learners and their objective take batches without rows.

    `expected_rows`: what a batch counts in averages over edges in place of its own size, which is private; None where
    the back is trained without noise.
    """

    def __init__(self, trainer: EdgeTrainer, expected_rows: float | None):
        super().__init__(trainer)
        self._expected = expected_rows

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round from the back that the cloud sent; no batch has come."""
        super().begin(bench, edge, back)
        self._batches = 0

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Answer the uploads of one step; one without rows gets a reply of zero rows."""
        self._batches += len(messages)
        return self._pooled(self.trainer, messages) if isinstance(self.trainer, Pooled) else super().step(messages)

    def _pooled(self, trainer: Pooled, messages: Sequence[Upload]) -> Sequence[Reply]:
        drawn = [upload for upload in messages if len(upload.targets)]
        empty = [upload for upload in messages if not len(upload.targets)]
        learner = trainer.learner
        assert isinstance(learner, EmptyBatchLearner)
        learner.empty_batches = len(empty)
        if drawn:
            replies = trainer.step(drawn)
        else:
            replies = []
            learner.step(messages[0].step, batches=0)
        nothing = [Reply(u.device, u.step, u.smashed, torch.zeros(())) for u in empty]
        return sorted([*replies, *nothing], key=lambda reply: reply.device)

    def result(self) -> Total:
        """The backs of this round, weighted; a shared one by the rows that its batches were expected to have."""
        if self._expected is not None and isinstance(self.trainer, SharedBack):
            self.trainer.examples = self._batches * self._expected
        return super().result()
