"""A stack of any segment's weights: `torch.func.vmap` over them, and one optimizer step for all devices."""

from typing import Any

import torch
from torch import Tensor, nn

from fsl.engines.low_rank_stack import stacked_views
from fsl.engines.stack import Stack, Starts
from fsl.segments.learner import SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe, set_learning_rate
from fsl.segments.states import State

_BLOCK = 1 << 16  # columns of a sum over devices at once, which is in float64


class WeightStack(Stack):
    """One segment with each device's weights in memory, behind each other.

    The optimizer must step each element by its own gradient and history, as torch's do that `plain_plans` names.
    """

    even = True

    def __init__(self, runtime: SegmentRuntime, recipe: OptimizerRecipe):
        self._layout = runtime.layout
        self._recipe = recipe
        self._module = runtime.copied()
        self._run = torch.func.vmap(self._one)

    def bytes_of(self, rows: int) -> int:
        """Returns the bytes of a device's weights, their gradients, and what an optimizer keeps, whatever the rows."""
        return 3 * self._layout.bytes

    def begin(self, starts: Starts, learning_rate: float, rows: int) -> None:
        """Start a round with a copy of the weights for each device."""
        self._rows = starts.rows()
        self._live, self._rate = starts.devices, learning_rate
        views = stacked_views(self._layout, self._rows)
        trained = {field.name for field in self._layout.fields if field.trainable}
        self._homes = {name: view for name, view in views.items() if name not in trained}
        self._buffers = {name: view.clone() for name, view in self._homes.items()}  # vmap writes into no strided ones
        self._parameters = {name: nn.Parameter(view.data) for name, view in views.items() if name in trained}
        self._optimizer = self._recipe.build(list(self._parameters.values()))
        set_learning_rate(self._optimizer, learning_rate)

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], values: Tensor) -> Any:
        return torch.func.functional_call(self._module, (parameters, buffers), (values,))

    def forward(self, values: Tensor) -> Tensor:
        """Returns the outputs of the live devices' rows."""
        apart = values.view(self._live, -1, *values.shape[1:])
        buffers = {name: tensor[: self._live] for name, tensor in self._buffers.items()}
        outputs: Tensor = self._run(dict(self._parameters), buffers, apart)
        return outputs.flatten(0, 1)

    def step(self, live: int) -> None:
        """Step all live devices in one call."""
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self.leave(live)

    def leave(self, live: int) -> None:
        """Go on with the first devices; the others' weights stay as they are."""
        if live == self._live:
            return
        self._live = live
        if self._optimizer is None:
            return
        before = [self._optimizer.state[one] for one in self._parameters.values()]
        self._parameters = {name: nn.Parameter(one.data[:live]) for name, one in self._parameters.items()}
        self._optimizer = self._recipe.build(list(self._parameters.values()))
        set_learning_rate(self._optimizer, self._rate)
        assert self._optimizer is not None
        for parameter, state in zip(self._parameters.values(), before):
            if state:
                self._optimizer.state[parameter] = {
                    key: value[:live] if isinstance(value, Tensor) and value.dim() else value
                    for key, value in state.items()
                }

    def sound(self) -> Tensor:
        """Returns by device whether its weights are finite."""
        flats = [flat for flat in self.states().values() if flat.is_floating_point()]
        return torch.stack([torch.linalg.vector_norm(flat, dim=1).isfinite() for flat in flats]).all(0)

    def mean(self, shares: Tensor) -> State:
        """Returns the weighted sum in float64; of integer counters the largest."""
        counted = shares > 0
        found = {}
        for dtype, rows in self.states().items():
            kept = rows if counted.all() else rows[counted]
            if dtype.is_floating_point:
                parts = [shares[counted].double() @ block.double() for block in kept.split(_BLOCK, 1)]
                found[dtype] = torch.cat(parts) if parts else kept.new_zeros(0).double()
            else:
                found[dtype] = kept.amax(0)
        return State(found)

    def states(self) -> dict[torch.dtype, Tensor]:
        """Returns every device's weights."""
        for name, home in self._homes.items():
            home.copy_(self._buffers[name])
        return self._rows
