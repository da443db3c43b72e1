"""Tries a step of the back, and undoes it where its loss has diverged or a value is not finite."""

from collections.abc import Callable, Sequence
from functools import wraps
from types import TracebackType
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from fsl.errors import StepError
from fsl.objective import Objective
from fsl.segments.finite import REFUSED, usable
from fsl.segments.labelled_parts import loss_by
from fsl.segments.learner import Learner
from fsl.segments.tensor_trees import gradient_of, mapped, tensors_of
from fsl.trainers.uploads import Reply, Upload


class Trial:
    """Runs a step's forward and backward passes, and undoes them (buffers, gradients) unless the step `passes`.

    Its loss must lie within `limit` (None: every step is applied, and nothing is looked at). What fails inside is
    raised as a StepError that names the upload's device and step.
    """

    def __init__(self, learner: Learner, upload: Upload, limit: float | None):
        self._learner = learner
        self._upload = upload
        self._limit = limit
        self.judged = limit is not None

    def __enter__(self) -> Self:
        try:
            self._mark = self._learner.mark() if self.judged else None
        except Exception as error:
            raise StepError(self._upload.device, self._upload.step) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            raise StepError(self._upload.device, self._upload.step) from error

    def passes(self, losses: Sequence[Tensor], made: Sequence[Tensor | None]) -> bool:
        """Whether the step may be applied: by its losses, what else it `made`, and the learner's gradients."""
        if self._mark is None or usable(losses, [*made, *self._learner.made()], self._limit):
            return True
        self._learner.undo(self._mark)
        return False


class Pooling(Protocol):
    """A trainer that makes one step of several devices' uploads."""

    def usable_alone(self, upload: Upload, uploads: Sequence[Upload]) -> bool:
        """Whether a step on one of these uploads alone could be applied."""


P = TypeVar("P", bound=Pooling)
Attempt = Callable[[P, Sequence[Upload]], Sequence[Reply] | None]


def judged(attempt: Attempt[P]) -> Callable[[P, Sequence[Upload]], Sequence[Reply]]:
    """Decorates a step over several uploads: where it is unusable, refuses the devices at fault and steps without them.

    `attempt` returns None where its step cannot be applied, and was not. A device spoils a step if its upload alone
    cannot be trained on; where none of them does, all do.
    """

    @wraps(attempt)
    def step(self: P, uploads: Sequence[Upload]) -> Sequence[Reply]:
        replies = attempt(self, uploads)
        if replies is not None:
            return replies
        bad = [upload for upload in uploads if not self.usable_alone(upload, uploads)] or uploads
        lost = {upload.device for upload in bad}
        rest = [upload for upload in uploads if upload.device not in lost]
        answered = {(reply.device, reply.step): reply for reply in (step(self, rest) if rest else [])}
        answered |= {(u.device, u.step): refusal(u) for u in uploads if u.device in lost}
        return [answered[u.device, u.step] for u in uploads if (u.device, u.step) in answered]

    return step


def refusal(upload: Upload) -> Reply:
    """Returns the reply to a refused upload: no gradient, loss 0, and `refused` with the reason."""
    return Reply(upload.device, upload.step, None, torch.zeros(()), refused=REFUSED)


def usable_alone(learner: Learner, objective: Objective, upload: Upload, layer_seed: int, limit: float | None) -> bool:
    """Whether a step on this upload alone could be applied; the learner is left as it was."""
    mark = learner.mark()
    leaf = mapped(_collecting, upload.smashed.detach())
    loss_of = loss_by(objective, upload.targets)
    loss = loss_of(learner.forward(leaf.clone(), layer_seed, loss_of))
    loss.backward()
    gradient = gradient_of(leaf)
    found = usable([loss], [*(() if gradient is None else tensors_of(gradient)), *learner.made()], limit)
    learner.undo(mark)
    return found


def _collecting(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
