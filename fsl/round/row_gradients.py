"""Checks that each sample's gradient depends on that sample alone: of the loss, and of every trained parameter."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fsl.errors import ConfigError
from fsl.faults import trying
from fsl.importing.description import describe
from fsl.objective import LossFunction, Objective
from fsl.round.row_trial import Loss, RowTrial

_SIZES = (3, 2)  # two batch sizes, of which at most one can equal a sequence's length


def refuse_loss(objective: Objective, outputs: Tensor, targets: Tensor, kinds: Tensor) -> None:
    """Raise ConfigError where the loss is no mean over rows, so that a row's share depends on the other rows.

    `outputs` (B, ...) and `targets` (B, ...) are a batch's; `kinds` (K,) the possible labels, empty where targets are
    numbers.
    """
    outputs, before = outputs.detach(), describe(objective)
    for told in _assignments(objective, targets):
        for size in (len(outputs), len(outputs) - 3):
            if not _mean_of_rows(objective.loss, outputs[:size], told[:size]):
                raise ConfigError(_no_mean(objective))
        with trying(f"privacy.dp_sgd: objective={_named(objective)}: rows() of a batch"):
            rows = objective.rows(outputs, told)
        if rows is not None and not _mean_of_rows(lambda o, t: _rows(objective, o, t).mean(), outputs, told):
            raise ConfigError(_no_mean(objective))
    for told in _every_label(targets, kinds):
        if not _mean_of_rows(objective.loss, outputs, told, 1):
            raise ConfigError(_no_mean(objective))
    if describe(objective) != before:
        raise ConfigError(
            f"privacy.dp_sgd: objective={_named(objective)} remembers something of the rows that it has seen, so that "
            "a sample counts in later steps, which no clip bounds; use a loss that changes nothing of itself"
        )


def _rows(objective: Objective, outputs: Tensor, targets: Tensor) -> Tensor:
    rows = objective.rows(outputs, targets)
    assert rows is not None
    return rows


def _every_label(targets: Tensor, kinds: Tensor) -> Iterator[Tensor]:
    """Yields targets whose first row has the first label, and whose other rows have each of the others in turn."""
    kinds = kinds.to(targets)
    for others in kinds[1:].split(len(targets) - 1):
        labels = torch.cat([kinds[:1], others]).repeat(len(targets))[: len(targets)]
        yield labels.view(-1, *[1] * (targets.dim() - 1)).expand_as(targets).clone()


def _assignments(objective: Objective, targets: Tensor) -> list[Tensor]:
    """Returns the targets as they are, permuted, and with an ignored row, where the objective ignores any."""
    found = [targets, targets.roll(1, 0)]
    ignored = objective.ignored
    if not targets.is_floating_point() and (objective.ignores or _has(targets, ignored)):
        found.append(targets.clone())
        found[-1][1] = found[-1].new_tensor(ignored)
    return found


def _has(targets: Tensor, ignored: int | None) -> bool:
    return ignored is not None and bool((targets == ignored).any())


def _mean_of_rows(loss: Loss, outputs: Tensor, targets: Tensor, rows: int | None = None) -> bool:
    """Returns whether B times a row's gradient is that row's gradient alone, for `rows` rows (None: all)."""
    whole = _gradient(loss, outputs, targets)
    if whole is None:
        return False
    for row in range(len(outputs) if rows is None else rows):
        alone = _gradient(loss, outputs[row : row + 1], targets[row : row + 1])
        if alone is None or not alike(len(outputs) * whole[row : row + 1], alone, 1e-3, float(alone.abs().max())):
            return False
    return True


def _gradient(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Returns the gradient of a batch's loss by the outputs; None where it is not finite."""
    leaf = outputs.clone().requires_grad_()
    try:
        (found,) = torch.autograd.grad(loss(leaf, targets), leaf)
    except Exception:
        return None  # the loss is undefined for one row alone
    return found if bool(found.isfinite().all()) else None


def _no_mean(objective: Objective) -> str:
    weighted = getattr(objective, "class_weights", None) is not None
    remedy = "give the mean over rows of a loss of each row"
    if weighted:
        remedy = (
            "weigh rows by numbers that do not depend on the batch: objective.mean_over=targets, or in Python "
            "objective=lambda outputs, targets: "
            "(weights[targets] * torch.nn.functional.cross_entropy(outputs, targets, reduction='none')).mean()"
        )
    elif objective.ignores:
        remedy = "leave samples whose targets are ignored out of the data, or use objective.mean_over=targets"
    return (
        f"privacy.dp_sgd: objective={_named(objective)}: it is no mean over rows, what a sample counts depends on the "
        f"others that are drawn with it, so that no clip bounds what a sample does; {remedy}"
    )


def _named(objective: Objective) -> str:
    if isinstance(objective, LossFunction):
        return getattr(objective.function, "__name__", type(objective.function).__name__)
    return "cross_entropy" if objective.takes_classes else getattr(objective, "name", type(objective).__name__)


def refuse_gradients(
    trial: RowTrial, private: list[str], objective: Objective, inputs: Tensor, targets: Tensor
) -> None:
    """Raise ConfigError where a clip would not act on one sample's gradient alone, for any trained parameter.

    Opacus must find the same gradient of a sample in a batch as in a batch of its own.
    """
    what = "the gradient of each sample cannot be found"
    with trying(f"privacy.dp_sgd: {what}"):
        parameters = trial.hook(private)
        if not parameters:
            return
        alone = [
            trial.gradients(parameters, inputs[row : row + 1], targets[row : row + 1], objective.loss, False)
            for row in range(max(_SIZES))
        ]
        batches = {n: trial.gradients(parameters, inputs[:n], targets[:n], objective.loss) for n in _SIZES}
    largest = max((float(g.abs().max()) for one in alone for _, g in one.values() if g is not None), default=0.0)
    for size, found in batches.items():
        for name, (samples, total) in found.items():
            own = [one[name][1] for one in alone[:size]]
            problem = _problem(samples, total, own, size, largest)
            if problem is not None:
                raise ConfigError(f"privacy.dp_sgd: the {name} cannot be trained privately: {problem}")


def _problem(
    samples: Tensor | None, total: Tensor | None, own: list[Tensor | None], size: int, largest: float
) -> str | None:
    """Returns what is wrong with one parameter's per-sample gradients, in words; None where they are right."""
    if total is None and samples is None:
        return "no gradient reaches it; freeze it with requires_grad_(False), or use it in forward"
    if samples is None or total is None:
        return (
            "Opacus finds no sample's gradient of it; it must be a parameter of a layer that Opacus knows, called as a "
            "module, or of a module of its own that takes one tensor and has no other layers"
        )
    if len(samples) != size:
        return (
            f"its gradients of {size} samples have {len(samples)} rows, which are no samples; put the batch in the "
            "first dimension of every layer's input (an embedding of positions takes positions.expand(B, T))"
        )
    expected = torch.stack([torch.zeros_like(total) if one is None else one for one in own])
    if not (alike(samples, expected, 1e-3, largest) and alike(samples.mean(0), total, 1e-3, largest)):
        return (
            "what Opacus takes for a sample's gradient is not the gradient of that sample; use its parameters only "
            "through the layers that have them, each row by itself"
        )
    return None


def alike(one: object, other: object, tolerance: float = 1e-5, scale: float = 0.0) -> bool:
    """Returns whether two tensors are equal up to rounding, relative to `scale` or their largest number."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other) or not one.numel():
        return True
    if not one.is_floating_point():
        return False
    coarse = 3e-2 if torch.finfo(one.dtype).eps > 1e-4 else tolerance
    size = max(scale, float(other.abs().nan_to_num(0.0, 0.0, 0.0).max()))
    return torch.allclose(one, other, rtol=coarse, atol=coarse * 0.1 * size, equal_nan=True)
