"""How gradients become steps of an optimizer: clipped, accumulated over batches, at which rate, in which precision."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import torch
from msgspec import Meta
from torch import Tensor, nn

from fsl.errors import RunError
from fsl.segments.learning_rate import Pace
from fsl.segments.precision import Precision, computing, loss_scale

NO_STEP = (
    "a step does not say after which batch of the round it comes; call learner.step(upload.step, device=upload.device)"
)


@dataclass(frozen=True, kw_only=True)
class StepControl:
    """What a round's plan says of steps, for all segments.

    `clip_norms`: by segment, the norm to which each step's gradient of it is clipped. `accumulate`: batches a step.
    `precision`: in which forward passes and losses are computed. `pace`: the rate by step; None: one rate a round.
    """

    clip_norms: Mapping[str, Annotated[float, Meta(gt=0)]] = field(default_factory=dict)
    accumulate: Annotated[int, Meta(ge=1)] = 1
    precision: Precision = "float32"
    pace: Pace | None = None


class Saver(Protocol):
    """Keeps small, in one session, what autograd saves of forward passes for backward passes."""

    def saving(self) -> AbstractContextManager[Any]:
        """A context for a forward pass."""

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Take note of an optimizer's step, with the gradients still there."""

    def state(self) -> Mapping[int, Tensor]:
        """Returns what the session knows, by the place of a parameter."""

    def resume(self, state: Mapping[int, Tensor]) -> None:
        """Go on from what `state` gave."""


class ActivationMemory(Protocol):
    """How a device keeps what autograd saves; `fsl.memory.ErrorBoundedMemory` implements it."""

    def saver(self, parameters: Sequence[nn.Parameter], scale: float = 1.0) -> Saver:
        """Returns what does so in one session over these parameters, whose losses are `scale` times as large."""


@dataclass(frozen=True, kw_only=True)
class StepRule:
    """The same for one segment's learners in one round.

    `batches` tells a device's batches in the round (None: the most that any device of the edge has). `memory`: how what
    autograd saves is kept; None: as it is.
    """

    clip_norm: float | None = None
    accumulate: int = 1
    precision: Precision = "float32"
    pace: Pace | None = None
    round: int = 1
    batches: Callable[[int | None], int] | None = None
    allowed: Sequence[str] = ()
    memory: ActivationMemory | None = None

    def gathered(self, step: int | None, device: int | None) -> int:
        """Returns how many batches a step is over that is due after batch `step` of the round; 0: more are to come.

        Groups are of `accumulate` batches in a row; the last group of a round has those that are left. RunError where
        a trainer does not say which batch it is.
        """
        if self.accumulate == 1:
            return 1
        if step is None:
            raise RunError(f"accumulate={self.accumulate}: {NO_STEP}")
        count = step % self.accumulate + 1
        return count if count == self.accumulate or step + 1 == self._batches(device) else 0

    def rate(self, base: float, step: int, device: int | None) -> float:
        """Returns the learning rate of a step after batch `step` of the round, where the round's is `base`."""
        if self.pace is None:
            return base
        steps = -(-self._batches(device) // self.accumulate)
        return self.pace.rate_of(base, self.round, step // self.accumulate, steps, self.allowed)

    def clip(self, parameters: Sequence[nn.Parameter]) -> None:
        """Clip the segment's gradient, over these parameters, to its norm."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    def divisor(self, gathered: int) -> float:
        """Returns what gradients are divided by in a step over so many batches."""
        return gathered * loss_scale(self.precision)

    def saver(self, parameters: Sequence[nn.Parameter]) -> Saver | None:
        """Returns what keeps, in one session over these parameters, what autograd saves; None: autograd itself."""
        return None if self.memory is None else self.memory.saver(parameters, loss_scale(self.precision))

    def computing(self, accelerator: torch.device) -> AbstractContextManager[Any]:
        """A context for the segment's forward pass."""
        return computing(self.precision, accelerator)

    def _batches(self, device: int | None) -> int:
        if self.batches is None:
            raise RunError("a rate by step, and accumulation, need to know how many batches a device has in a round")
        return self.batches(device)


AS_THEY_ARE = StepRule()  # gradients step as they are, batch by batch


def mean_gradient(parameters: Sequence[nn.Parameter], count: float) -> None:
    """Divide what so many backward passes have added up, in place."""
    if count != 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= count
