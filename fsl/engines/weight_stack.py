"""A stack of any segment's weights, with one optimizer step for all devices."""

from collections.abc import Mapping
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

    `torch.func.vmap` runs the devices side by side. Convolutions on a CPU run device after device instead, with
    channels last: vmap makes groups of them, which are slower there, and pooling where channels lie first is slower.
    """

    even = True

    def __init__(self, runtime: SegmentRuntime, recipe: OptimizerRecipe):
        self._layout = runtime.layout
        self._recipe = recipe
        self._module = runtime.copied()
        self._run = torch.func.vmap(self._one)
        convolves = any(isinstance(part, nn.Conv2d) for part in self._module.modules())
        self._apart = convolves and runtime.accelerator.type == "cpu"

    def bytes_of(self, rows: int) -> int:
        """Returns the bytes of a device's weights, their gradients, and what an optimizer keeps, whatever the rows."""
        return 3 * self._layout.bytes

    def begin(self, starts: Starts, learning_rate: float, rows: int) -> None:
        """Start a round with a copy of the weights for each device."""
        self._rows = starts.states()
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
        rows = values.view(self._live, -1, *values.shape[1:])
        buffers = {name: tensor[: self._live] for name, tensor in self._buffers.items()}
        if not self._apart:
            outputs: Tensor = self._run(dict(self._parameters), buffers, rows)
            return outputs.flatten(0, 1)
        parameters, own = _each(self._parameters, self._live), _each(buffers, self._live)
        # Copies, since a module may write into its inputs, and views of one tensor would all count as changed then.
        form = torch.channels_last if values.dim() == 4 else torch.preserve_format
        alone = [one.clone(memory_format=form) for one in rows.unbind()]
        return torch.cat([self._one(*given) for given in zip(parameters, own, alone, strict=True)])

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


def _each(tensors: Mapping[str, Tensor], devices: int) -> list[dict[str, Tensor]]:
    """Returns stacked tensors as those of each device: views, whose gradients are put together once."""
    if not tensors:
        return [{} for _ in range(devices)]
    return [dict(zip(tensors, one)) for one in zip(*(tensor.unbind() for tensor in tensors.values()))]
