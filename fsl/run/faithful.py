"""Checks on one small batch, before a run, that the segments of a model compute and train what the model does.

A node keeps one live copy of the modules and puts each device's tensors into it. What a model keeps elsewhere is not
swapped with them. Here the plain model and its segments take a step from equal weights, other than those that the
modules have, and everything that comes out is compared.
"""

import copy

import torch
from torch import Tensor, nn

from fsl.errors import FslError, SplitError
from fsl.faults import said
from fsl.round.workload import Worker
from fsl.run.compared_steps import Loss, PlainTrial, SplitTrial, Step, generators
from fsl.segments.module_memories import PROBED
from fsl.segments.tensor_trees import Values


def refuse_unfaithful(model: nn.Module, worker: Worker, inputs: Values, targets: Tensor, loss: Loss) -> None:
    """SplitError, naming what differs, where the segments of `worker` are not what the plain `model` is.

    `inputs` (B, ...) and `targets` (B, ...) are a few rows, two at least where the model normalises over the batch.
    Compared are outputs, gradients and buffers of a step in training mode, and outputs in evaluation mode; where only
    random draws are in another order, they are no difference. Model, worker and random generators are left as found. A
    model that fails by itself is not refused here: training says where.
    """
    _refuse_hooks(model)
    batch = inputs.to(worker.accelerator), targets.to(worker.accelerator)
    loss, fresh_loss = _copied(loss), _copied(loss)
    fewer = batch[0][: max(1, len(inputs) - 1)]
    with generators(worker.accelerator):
        try:
            plain = PlainTrial(model, worker.accelerator)
            first = plain.step(*batch, loss)
            fresh = PlainTrial(model, worker.accelerator)
            _refuse_memory(plain, fresh, first, batch, loss, fresh_loss)
            expected = plain.evaluate(fewer)
            if not _alike(expected, fresh.evaluate(fewer), 0.0):
                raise _memory(plain.changed, "the outputs in evaluation mode are others")
        except FslError:
            raise
        except Exception:
            return
        try:
            split = SplitTrial(worker, plain.state())
            _refuse_difference(first, split.step(*batch, loss), "The segments of the model")
            _unless_it_fails(split, *_other(*batch), loss)
            _refuse_difference(first, split.step(*batch, loss), "The segments, where another device trained before,")
            if not _alike(expected, split.evaluate(fewer), 0.0):
                raise SplitError(
                    "The segments of the model give other outputs in evaluation mode, of a batch of another size, than "
                    "the model: what its forward decides by the batch, or by a train() of its own, is lost; put that "
                    "in a module of its own, which is called as it is"
                )
        except FslError:
            raise
        except Exception as error:
            line = said(error)
            raise SplitError(f"the model trains as a whole, but its segments fail: {line}") from error


def _copied(loss: Loss) -> Loss:
    """A loss that remembers for itself, where it can be copied."""
    try:
        return copy.deepcopy(loss)
    except Exception:
        return loss


def _other(inputs: Values, targets: Tensor) -> tuple[Values, Tensor]:
    """Another batch of the same size: rows in its middle, closer to zero, so that no mean or maximum is the same."""
    rows = len(inputs) // 2 - torch.arange(len(inputs), device=inputs.device) % min(2, len(inputs))
    other = inputs[rows]
    return other * 0.5 if isinstance(other, Tensor) and other.is_floating_point() else other, targets[rows]


def _unless_it_fails(trial: PlainTrial | SplitTrial, inputs: Values, targets: Tensor, loss: Loss) -> Step | None:
    try:
        return trial.step(inputs, targets, loss)
    except Exception:
        return None  # no batch that a run has


def _refuse_hooks(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise SplitError(
                f"the parameter '{name}' has a gradient hook, and each device's copy of it would have none; put the "
                "hook's work into the model's forward, or remove it"
            )


def _refuse_memory(
    plain: PlainTrial, fresh: PlainTrial, first: Step, batch: tuple[Values, Tensor], loss: Loss, fresh_loss: Loss
) -> None:
    """SplitError where a step depends on what an earlier one has left beside the buffers.

    `plain` has taken the `first` step, of `batch`; `fresh` begins with another one, as another device would.
    """
    changed = plain.changed
    other = _other(*batch)
    settled = plain.remembered()
    pairs = [
        (_unless_it_fails(fresh, *other, fresh_loss), _unless_it_fails(plain, *other, loss)),
        (first, plain.step(*batch, loss)),
        (first, fresh.step(*batch, fresh_loss)),
    ]
    if plain.count_on(settled):  # as if many steps had been
        # Where it fails, no such number comes about.
        pairs += [(first, _unless_it_fails(plain, *batch, loss)) for _ in range(PROBED)]
    for one, two in pairs:
        if one is None or two is None or (what := _difference(one, two)) is None:
            continue
        if _alike(one.outputs, two.outputs, 0.0) and not _alike(one.loss, two.loss, 0.0):
            raise SplitError(
                "the loss of a batch depends on the batches before it: all devices of a node share what it keeps; "
                "compute it from outputs and targets alone"
            )
        raise _memory(changed, what)


def _memory(changed: list[str], what: str) -> SplitError:
    where = ", ".join(f"'{name}'" for name in changed) or "something outside of its modules"
    return SplitError(
        f"forward changes {where}, and its result depends on it ({what}): all devices of a node share that; "
        "register it as a buffer, which each device has for itself"
    )


def _refuse_difference(plain: Step, split: Step, who: str) -> None:
    what = _difference(plain, split)
    if what is not None:
        raise SplitError(
            f"{who} would not train as the model does: {what}; the model's forward has effects that cutting does not "
            "keep; put them in a module of their own, which is called as it is"
        )


def _difference(plain: Step, other: Step) -> str | None:
    """What differs first, in words; None where nothing does."""
    for name, gradient in plain.gradients.items():
        found = other.gradients.get(name)
        if (gradient is None) != (found is None):
            gets, here = ("no" if gradient is None else "a"), ("no" if found is None else "a")
            return f"'{name}' gets {gets} gradient in the model, and {here} gradient there"
    if not _alike(plain.outputs, other.outputs, 0.0):
        return "the outputs are others"
    largest = max((float(g.abs().max()) for g in plain.gradients.values() if g is not None and g.numel()), default=0.0)
    for kind, one, two in (("gradient", plain.gradients, other.gradients), ("buffer", plain.buffers, other.buffers)):
        for name, value in one.items():
            if not _alike(value, two.get(name), largest if kind == "gradient" else 0.0):
                return f"the {kind} of '{name}' is another" if kind == "gradient" else f"the buffer '{name}' is another"
    return None if _alike(plain.loss, other.loss, 0.0) else "the loss is another"


def _alike(one: object, other: object, scale: float) -> bool:
    """Whether two tensors are equal but for rounding; whatever is no tensor is."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    if not one.is_floating_point():
        return False
    coarse = torch.finfo(one.dtype).eps > 1e-4
    size = max(scale, float(one.detach().abs().nan_to_num(0.0, 0.0, 0.0).max()))
    return torch.allclose(one, other, rtol=2e-2 if coarse else 1e-3, atol=1e-5 * size, equal_nan=True)
