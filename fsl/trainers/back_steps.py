"""One step of a back on one upload, and what it gives for the cut."""

import math

import torch
from torch import Tensor

from fsl.errors import NO_GRADIENT, SplitError
from fsl.objective import Objective
from fsl.segments.labelled_parts import loss_by
from fsl.segments.learner import Learner
from fsl.segments.tensor_trees import TensorTree, Values, activations_of, gradient_of, mapped, tensors_of
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
        loss_of = loss_by(objective, upload.targets)
        loss = loss_of(learner.forward(leaf.clone(), layer_seed, loss_of))
        loss.backward()
        found = gradient_of(leaf)
        if not trial.passes([loss], () if found is None else tensors_of(found)):
            return refusal(upload)
        learner.step(upload.step, device=upload.device)
    gradient = cut_gradient(leaf, found) if answers else None
    return Reply(upload.device, upload.step, gradient, loss.detach(), judged=trial.judged)


def cut_leaf(smashed: Values, collects: bool = True) -> Values:
    """Smashed data (B, ...) as leaves that collect the cut gradient, unless they are whole numbers, or exact.

    Run the back on a clone of them, so that an in-place activation behind the cut is no error.
    """

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.requires_grad_() if collects and tensor.is_floating_point() else tensor

    return mapped(leaf, smashed.detach())


def cut_gradient(smashed: Values, gradient: Values | None) -> Values:
    """Returns the cut gradient (B, ...) to send: `gradient`, or zeros where smashed data are empty or integers.

    SplitError where the loss does not depend on smashed data that could have a gradient: a front that were sent zeros
    would not stay as it is (momentum, weight decay), as it does where the whole model is trained.
    """
    if gradient is not None:
        return gradient
    activations = activations_of(smashed)
    if len(smashed) and any(tensor.is_floating_point() for tensor in activations):
        raise SplitError(f"in this step {NO_GRADIENT}")
    return torch.zeros_like(smashed.leading if isinstance(smashed, TensorTree) else smashed)
