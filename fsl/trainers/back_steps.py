"""One step of a back on one upload, and what it gives for the cut."""

import math

import torch
from torch import Tensor

from fsl.errors import NO_GRADIENT, SplitError
from fsl.objective import Objective
from fsl.segments.learner import Learner
from fsl.trainers.judging import Trial, refusal
from fsl.trainers.uploads import Reply, Upload


def train_back(
    learner: Learner,
    objective: Objective,
    upload: Upload,
    layer_seed: int,
    answers: bool = True,
    limit: float | None = math.inf,
) -> Reply:
    """One step of a back on one device's upload: forward, loss, backward, optimizer step.

    A step whose loss lies above `limit`, or that made something which is not finite, is refused before it is applied.
    The cut gradient is that of the weights before the step. `answers=False` leaves the cut gradient out.
    """
    leaf = cut_leaf(upload.smashed, answers)
    with Trial(learner, upload, limit) as trial:
        loss = objective.loss(learner.forward(leaf.clone(), layer_seed), upload.targets)
        loss.backward()
        if not trial.passes([loss], [leaf.grad]):
            return refusal(upload)
        learner.step(upload.step, device=upload.device)
    gradient = cut_gradient(leaf, leaf.grad) if answers else None
    return Reply(upload.device, upload.step, gradient, loss.detach(), judged=trial.judged)


def cut_leaf(smashed: Tensor, collects: bool = True) -> Tensor:
    """Smashed data (B, ...) as a leaf that collects the cut gradient, unless they are whole numbers.

    Run the back on a clone of it, so that an in-place activation behind the cut is no error.
    """
    leaf = smashed.detach()
    return leaf.requires_grad_() if collects and leaf.is_floating_point() else leaf


def cut_gradient(smashed: Tensor, gradient: Tensor | None) -> Tensor:
    """Returns the cut gradient (B, ...) to send: `gradient`, or zeros where smashed data are empty or integers.

    SplitError where the loss does not depend on smashed data that could have a gradient: a front that were sent zeros
    would not stay as it is (momentum, weight decay), as it does where the whole model is trained.
    """
    if gradient is not None:
        return gradient
    if len(smashed) and smashed.is_floating_point():
        raise SplitError(f"in this step {NO_GRADIENT}")
    return torch.zeros_like(smashed)
