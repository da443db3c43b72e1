"""The loss of a U-shaped split: labels stay on devices, whose tails compute it and send its gradient back."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fsl.objective import Objective
from fsl.segments.tensor_trees import Values, activations_of, tensors_of

# Asks devices, by number, for the mean loss of some rows of the back's outputs, and for its gradient at these.
AskTails = Callable[[Sequence[tuple[int, Values]]], Sequence[tuple[Tensor, Values]]]


class RemoteTails(Objective):
    """What a back minimises where labels stay on devices: the mean loss that a device's tail finds for its outputs.

    A trainer calls it as any objective. In place of targets it gets whose rows these are: a device's number for each
    (B,), as uploads bring. Vepakomma et al. 2018 (arXiv 1812.00564), U-shaped configuration without label sharing.
    """

    def __init__(self, ask: AskTails):
        self._ask = ask

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Returns the mean loss over the rows of one device, or of several, each by its share of the rows."""
        devices, sizes = targets.unique_consecutive(return_counts=True)
        if len(devices) == 1:
            return self.losses([outputs], [targets])[0]
        own = self.losses(outputs.split(sizes.tolist()), targets.split(sizes.tolist()))
        return torch.stack(list(own)) @ (sizes / len(targets)).to(own[0])

    def losses(self, outputs: Sequence[Any], targets: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the mean loss of each device's rows: all devices compute at the same time."""
        asked = [(int(whose[0]), values.detach()) for values, whose in zip(outputs, targets, strict=True)]
        answers = self._ask(asked)
        return [_told(values, *answer) for values, answer in zip(outputs, answers, strict=True)]


def _told(outputs: Values, loss: Tensor, gradient: Values) -> Tensor:
    """Returns a loss that was computed elsewhere, as a function of outputs whose gradient came with it."""
    found: Tensor = _Told.apply(loss, tensors_of(gradient), *activations_of(outputs))
    return found


class _Told(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor, ...], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if grad == 1:  # a loss of its own
            return None, None, *ctx.gradients
        return None, None, *(gradient * grad.to(gradient) for gradient in ctx.gradients)
