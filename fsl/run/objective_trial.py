"""What is tried of an objective on a few rows: its loss is a mean over rows, and agrees with its other answers."""

import logging
import warnings

import torch
from torch import Tensor

from fsl.errors import ConfigError
from fsl.faults import trying
from fsl.objective import LossFunction, Objective
from fsl.quoting import short

log = logging.getLogger(__name__)


def tried_loss(objective: Objective, outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the loss of a few rows; ConfigError for one that no run can train by."""
    name = named(objective)
    # torch computes such a loss, pairing each output with every target.
    with trying(f"objective={name} does not take the outputs"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Using a target size")
        loss = objective.loss(outputs, targets)
    if not isinstance(loss, Tensor) or loss.dim():
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ConfigError(f"objective={name}: it gives {what}; a loss is a scalar tensor, the mean over the batch")
    if not bool(loss.isfinite()):
        raise ConfigError(
            f"objective={name}: the loss of {len(outputs)} training rows is {float(loss.detach())} before "
            "anything is trained; look for values out of range in inputs and targets, and a log of 0 in model or loss"
        )
    if not loss.requires_grad:
        raise ConfigError(
            f"objective={name}: the loss has no gradient, as if it did not depend on the model; leave out .detach(), "
            ".item(), argmax and torch.no_grad() on the way to it"
        )
    return loss


def refuse_sum(objective: Objective, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
    """A sum over rows would weigh devices by their batches; torch's own losses say what they are."""
    with torch.no_grad():
        twice = objective.loss(torch.cat([outputs, outputs]), torch.cat([targets, targets]))
    if float(loss.abs()) > 1e-6 and abs(float(twice / loss) - 2) < 1e-3:
        raise ConfigError(
            f"objective={named(objective)}: the loss of the same rows twice is twice the loss, so it is a sum; "
            "devices and batches are averaged by their rows, so give the mean"
        )


def refuse_pairs(objective: Objective, outputs: Tensor, targets: Tensor) -> None:
    """A function that broadcasts outputs (B, 1) and targets (B,) compares every output with every target."""
    squeezed = [size for size in outputs.shape if size != 1] == [size for size in targets.shape if size != 1]
    if not isinstance(objective, LossFunction) or outputs.shape == targets.shape or not squeezed or len(targets) < 2:
        return
    others = targets.roll(1, 0)
    others[0] = targets[0]
    leaf = outputs.clone().requires_grad_()
    (own,) = torch.autograd.grad(objective.loss(leaf, targets), leaf)
    (other,) = torch.autograd.grad(objective.loss(leaf, others), leaf)
    if bool((targets != others).any()) and not torch.equal(own[0], other[0]):
        raise ConfigError(
            f"objective={named(objective)}: outputs of shape {tuple(outputs.shape)} and targets of shape "
            f"{tuple(targets.shape)} are broadcast, so that each output is compared with every target; give both one "
            "shape, outputs.squeeze(1) in the model or targets (N, 1)"
        )


def refuse_rows(objective: Objective, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
    """What an objective says beside its loss must be what it says."""
    name = named(objective)
    with torch.no_grad(), trying(f"objective={name} cannot score the outputs"):
        rows, correct = objective.rows(outputs, targets), objective.correct(outputs, targets)
        weight, scored = objective.weight(targets), objective.scored(targets)
    if rows is not None:
        if tuple(rows.shape) != (len(outputs),):
            raise ConfigError(f"objective={name}: rows() gives shape {tuple(rows.shape)}, not one loss for each row")
        if not torch.allclose(rows.mean(), loss.detach(), rtol=1e-3, atol=1e-6):
            raise ConfigError(
                f"objective={name}: the mean of rows() is {float(rows.mean()):.6g} and loss() "
                f"{float(loss.detach()):.6g}; they must agree, or rows() return None"
            )
    if not (isinstance(weight, int | float) and weight >= 0):
        raise ConfigError(f"objective={name}: weight() gives {short(weight)}; it is a number of 0 or above")
    if type(scored) is not int or scored < 0:
        raise ConfigError(f"objective={name}: scored() gives {short(scored)}; it is a whole number of 0 or above")
    if correct is None:
        return
    count = torch.as_tensor(correct)
    if count.numel() != 1 or count.is_floating_point() or not 0 <= int(count) <= scored:
        raise ConfigError(
            f"objective={name}: correct() gives {short(correct)} of {scored} targets; it is a count of those that are "
            "right, a whole number as a scalar, and no share: leave out .float() and .mean()"
        )


def warn_of_other_means(objective: Objective, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
    """Batches and devices are averaged by rows, unless an objective says what else its loss is a mean over."""
    if type(objective).weight is not Objective.weight or len(targets) % 2:
        return
    halves = (slice(None, len(targets) // 2), slice(len(targets) // 2, None))
    with torch.no_grad():
        mean = sum(objective.loss(outputs[half], targets[half]) for half in halves) / 2
    if not torch.allclose(torch.as_tensor(mean), loss, rtol=1e-3, atol=1e-6):
        log.warning(
            "objective=%s: the loss of %d rows is %.6g, and the mean over its halves %.6g, so it is no mean over rows; "
            "batches are averaged by their rows all the same, unless an fsl.objective.Objective says their weight()",
            *(named(objective), len(targets), float(loss), float(mean)),
        )


def named(objective: Objective) -> str:
    """What the user gave: the function's name where it is one."""
    if isinstance(objective, LossFunction):
        return getattr(objective.function, "__name__", type(objective.function).__name__)
    return getattr(objective, "name", type(objective).__name__)
