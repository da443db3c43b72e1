"""Finds how far the saved input of a layer may be off, from gradients and momentum of the step before."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

_MOST = 0.1  # of a tensor's largest value: a bound beyond it would follow from gradients that are almost zero


class LayerBounds:
    """The bounds of one session's layers, by their weight.

    An error that is uniform within the bound eb adds to a convolution's weight gradient one that is normal with
    sigma = eb * sqrt(rho / 3) * ||L_k||_2, where rho is the share of non-zeros in its input, and L_k the gradient at
    its output channel k, over batch and positions (COMET, section 4.2). The largest ||L_k|| of the step before and
    sigma = `fraction` * mean |momentum| give eb. For a batch norm, whose weight gradient sums L_k times the normalised
    input, ||L_k|| / std_k stands in place of ||L_k||, and rho is 1.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], fraction: float, first: float, scale: float = 1.0):
        self.parameters = parameters
        self.first = first
        self._fraction, self._scale = fraction, scale
        self._places = {id(parameter): place for place, parameter in enumerate(parameters)}
        self._coming: dict[int, Tensor] = {}  # the largest ||L_k|| since the last step, by the weight's place
        self._known: dict[int, tuple[float, float]] = {}  # the same of the last step, and mean |momentum|

    def watch(self, weight: Tensor | None, outputs: Tensor, channel: int, factors: Tensor | None = None) -> None:
        """Take note of ||L_k||, times `factors` (C,), when the gradient at a layer's outputs comes."""
        place = self._places.get(id(weight))
        if place is not None and outputs.requires_grad:
            outputs.register_hook(self._noting(place, channel, factors))

    def _noting(self, place: int, channel: int, factors: Tensor | None) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            others = [d for d in range(gradient.dim()) if d != channel]
            norms = torch.linalg.vector_norm(gradient.detach().float(), dim=others) / self._scale
            loudest = (norms if factors is None else norms * factors).amax()
            before = self._coming.get(place)
            self._coming[place] = loudest if before is None else torch.maximum(before, loudest)

        return note

    def bound(self, weight: Tensor | None, largest: float, rho: float) -> float:
        """Returns how far the values of a layer's input may be off; 0: not at all.

        `largest`: their largest absolute value.
        """
        known = self._known.get(self._places.get(id(weight), -1))
        if known is None:
            return self.first * largest
        loudest, momentum = known
        most = _MOST * largest
        sigma = self._fraction * momentum
        return most if sigma >= most * loudest * math.sqrt(rho / 3) else sigma / (loudest * math.sqrt(rho / 3))

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Take note of momentum after a step; gradients are still there."""
        for place, loudest in self._coming.items():
            parameter = self.parameters[place]
            kept = optimizer.state.get(parameter, {})
            momentum = next((kept[name] for name in ("momentum_buffer", "exp_avg") if kept.get(name) is not None), None)
            if momentum is None:
                momentum = parameter.grad
            if momentum is not None and math.isfinite(mean := float(momentum.abs().mean())):
                self._known[place] = float(loudest), mean
        self._coming.clear()

    def state(self) -> dict[int, Tensor]:
        """Returns what is known, (2,) by the weight's place."""
        return {place: torch.tensor(known, dtype=torch.float64) for place, known in self._known.items()}

    def resume(self, state: Mapping[int, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._coming.clear()
        self._known = {place: (float(known[0]), float(known[1])) for place, known in state.items()}
