"""Trains devices that make one step a round in one batch: none of them has weights of its own before the round ends."""

import torch
from torch import Tensor

from fsl.engines.segment_runs import SegmentRuns
from fsl.engines.sgd_history import SgdHistory
from fsl.engines.stack import NotStackedError, Stack, Starts
from fsl.importing.spec import Spec
from fsl.segments.finite import finite
from fsl.segments.learner import SegmentRuntime
from fsl.segments.states import Replica, State


class OneStep(Stack):
    """One segment of devices that begin alike and step once by SGD.

    The weighted mean of W - count * g_k over devices is W less count times one gradient: that of the weighted mean of
    the losses, in one forward and one backward pass over all devices' rows.
    """

    one_step = True

    def __init__(self, runtime: SegmentRuntime, optimizer: Spec, runs: SegmentRuns):
        self._layout, self._optimizer, self._runs = runtime.layout, optimizer, runs
        self._names = [field.name for field in self._layout.fields]

    def bytes_of(self, rows: int) -> int:
        """Returns none: devices have nothing of their own."""
        return 0

    def begin(self, starts: Starts, learning_rate: float, rows: int) -> None:
        """Start a round at one state."""
        if starts.shared is None:
            raise NotStackedError("devices that begin apart have no gradient in common")
        history = SgdHistory.of(self._optimizer)
        assert history is not None
        self._history, self._start, self._rate = history, starts.shared, learning_rate
        self._devices = starts.devices
        self._replica = Replica(self._layout, next(iter(starts.shared.flats.values())).device)
        self._replica.load(starts.shared)

    def forward(self, values: Tensor) -> Tensor:
        """Returns the outputs of all rows, by the one state."""
        tensors = dict(zip(self._names, self._replica.tensors))
        trained = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
        return self._runs.one(trained, {n: tensor for n, tensor in tensors.items() if n not in trained}, values)

    def step(self, live: int) -> None:
        """Count the one gradient."""
        if live:
            raise NotStackedError("a device makes another step, and has no weights of its own to make it from")
        self._history.step(self._rate)

    def leave(self, live: int) -> None:
        """Raises NotStackedError where some device has no step, and its weights stay as they were."""
        if live < self._devices:
            raise NotStackedError("a device has no step, and no weights of its own to keep")

    def sound(self) -> Tensor:
        """Returns whether the gradient is finite, for all alike."""
        whole = finite(p.grad for p in self._replica.parameters)
        return torch.full((self._devices,), whole)

    def mean(self, shares: Tensor) -> State:
        """Returns the weighted mean of the devices' states; their losses must have been weighed by these shares."""
        total = float(shares.double().sum())
        flats = self._start.flats.items()
        mean = State({d: flat.double() * total if d.is_floating_point else flat.clone() for d, flat in flats})
        trained = iter(self._replica.parameters)
        for field, view in self._layout.views(mean):
            if field.trainable and (gradient := next(trained).grad) is not None:
                view.mul_(self._history.start).sub_(gradient.double() * self._history.counts[0])
        return mean

    def states(self) -> dict[torch.dtype, Tensor]:
        """Raises NotStackedError: no device's own weights are known."""
        raise NotStackedError("devices that make one step together have no weights of their own")
