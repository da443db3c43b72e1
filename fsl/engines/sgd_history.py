"""SGD's weights as a sum over past gradients: what each of them counts, the same for all devices of a stack."""

from dataclasses import dataclass, field

from fsl.importing.spec import Spec

_KNOWN = {"momentum", "dampening", "weight_decay", "nesterov", "maximize"}


@dataclass
class SgdHistory:
    """After t steps of torch's SGD the weights are `start` * W_0 - sum over s of `counts[s]` * g_s.

    g_s is the gradient of the loss in step s. All options of `torch.optim.SGD` are linear in weights and gradients, so
    the same holds for what it keeps as momentum.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    start: float = 1.0
    counts: list[float] = field(default_factory=list)
    _velocity_start: float = 0.0
    _velocity: list[float] = field(default_factory=list)

    @staticmethod
    def of(optimizer: Spec) -> "SgdHistory | None":
        """Returns the history of an optimizer from its first step on; None for any but SGD with numbers as options."""
        if optimizer.target not in ("torch.optim.SGD", "torch.optim.sgd.SGD"):
            return None
        options = {name: value for name, value in optimizer.kwargs.items() if name in _KNOWN}
        if any(not isinstance(value, int | float) for value in options.values()):
            return None
        return SgdHistory(**options)

    def step(self, rate: float) -> None:
        """Count the step after one more gradient, at this learning rate."""
        sign = -1.0 if self.maximize else 1.0
        gradient_start = self.weight_decay * self.start
        gradient = [-self.weight_decay * count for count in self.counts] + [sign]
        if self.momentum:
            fresh = 1.0 if not self._velocity else 1.0 - self.dampening
            before = [*self._velocity, 0.0]
            self._velocity = [self.momentum * v + fresh * g for v, g in zip(before, gradient, strict=True)]
            self._velocity_start = self.momentum * self._velocity_start + fresh * gradient_start
            if self.nesterov:
                gradient = [g + self.momentum * v for g, v in zip(gradient, self._velocity, strict=True)]
                gradient_start += self.momentum * self._velocity_start
            else:
                gradient, gradient_start = self._velocity, self._velocity_start
        self.start -= rate * gradient_start
        self.counts = [count + rate * g for count, g in zip([*self.counts, 0.0], gradient, strict=True)]
