"""Checks that values from a device, an edge or a trainer are finite, before anything else depends on them.

It looks at a norm instead of every value, which costs one pass and one number: a norm is not finite where a value is
not, and also where the values' squares overflow (in float32 beyond 1.8e19), which the next step would turn into
infinities.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.linalg import vector_norm

from fsl.errors import LostError
from fsl.segments.states import State
from fsl.segments.sums import DeviceStates, Total, WeightedSum
from fsl.segments.tensor_trees import Values, mapped

# A training loss above this many times the divergence bound counts as lost: its step is refused.
FAR = 1e6
# A loss above which gradients are looked at step by step, where no objective's bound gives a limit.
HUGE = 1e12
_NARROW = (torch.float16, torch.bfloat16)  # their norms are taken in float32


def finite(tensors: Iterable[Tensor | None]) -> bool:
    """Returns whether the norms of all tensors are finite; integers always are. Reads one number of an accelerator."""
    away: list[Tensor] = []
    for tensor in tensors:
        if tensor is None or (norm := _norm(tensor)) is None:
            continue
        if not norm.is_cpu:
            away.append(norm.double())
        elif not math.isfinite(norm.item()):  # a number costs less than an operation
            return False
    return not away or math.isfinite(reduce(torch.add, (norm.to(away[0].device) for norm in away)).item())


def sound_rows(batch: Values) -> Values:
    """Returns rows (B, ...) with zeros in place of a row that is not finite; gradients pass through the others."""
    return mapped(_sound, batch)


def _sound(batch: Tensor) -> Tensor:
    if finite([batch.detach()]):
        return batch
    sound = batch.detach().isfinite().flatten(1).all(1)
    return batch.masked_fill(~sound.view(-1, *[1] * (batch.dim() - 1)), 0.0)


def finite_state(state: State) -> bool:
    """Returns whether a segment's values are finite."""
    return finite(state.flats.values())


def finite_total(total: Total) -> bool:
    """Returns whether a sum of states and its mean, or states one by one, are finite."""
    if isinstance(total, DeviceStates):
        return all(finite_state(state) for state in total.states.values())
    if not isinstance(total, WeightedSum):
        return True
    if not (math.isfinite(total.weight) and finite([*total.high.values(), *total.low.values()])):
        return False
    return not total.weight or finite_state(total.mean())  # a mean may overflow its dtype where its sum does not


def refuse_states(device: int, states: Mapping[str, State], private: bool = False) -> None:
    """Raise LostError for a device one of whose segments is not finite; `private`: without naming it."""
    for name, state in states.items():
        if not finite_state(state):
            raise LostError(device, UNUSABLE if private else f"its {name} is not finite; its training has diverged")


UNUSABLE = "what it trained cannot be used"  # the only reason given where another could reveal data
REFUSED = "its step cannot be used: a loss, or a gradient, that is not finite or far from all training"


def is_of_training(reason: str) -> bool:
    """Returns whether a device was lost for what it trained, as these reasons say, and not for how it was reached."""
    return any(words in reason for words in (UNUSABLE, "not finite", "diverged"))


def usable(losses: Sequence[Tensor], made: Iterable[Tensor | None], limit: float | None) -> bool:
    """Returns whether a step may be applied: its losses lie within the limit, and all that it made is finite.

    Without a limit every step may: then the device's work is judged at the end of its round.
    """
    if limit is None:
        return True
    if not finite(made):
        return False
    if not losses:
        return True
    least, most = (found.item() for found in torch.stack([loss.detach() for loss in losses]).aminmax())
    return math.isfinite(least) and math.isfinite(most) and most <= limit


def doubtful(losses: Sequence[Tensor], limit: float | None) -> bool:
    """Returns whether losses are so large, where no limit says what is, that a step's gradients may have overflown.

    Only who looked at each step's gradients can tell.
    """
    return limit == math.inf and bool(losses) and float(torch.stack(list(losses)).max()) > HUGE


def loss_limit(bound: float | None, clipped: bool) -> float | None:
    """Returns the loss above which a step is refused, from the objective's bound of divergence.

    None where samples' or devices' contributions are `clipped`, which bounds them: a refused step would reveal
    something of its samples.
    """
    if clipped:
        return None
    return math.inf if bound is None else FAR * bound


def _norm(tensor: Tensor) -> Tensor | None:
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
        return None
    values = tensor.detach() if tensor.requires_grad else tensor
    return vector_norm(values, dtype=torch.float32) if values.dtype in _NARROW else vector_norm(values)
