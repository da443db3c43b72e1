"""A stack of any segment's weights, with one optimizer step for all devices."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fsl.engines.low_rank_stack import stacked_views
from fsl.engines.one_kernel import in_one_kernel, is_one_kernel
from fsl.engines.segment_runs import SegmentRuns
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

    def __init__(self, runtime: SegmentRuntime, recipe: OptimizerRecipe, runs: SegmentRuns):
        self._layout = runtime.layout
        self._recipe = in_one_kernel(recipe, runtime.accelerator)
        self._runs = runs

    def bytes_of(self, rows: int) -> int:
        """Returns the bytes of a device's weights, their gradients, and what an optimizer keeps, whatever the rows."""
        return 3 * self._layout.bytes

    def begin(self, starts: Starts, learning_rate: float, rows: int) -> None:
        """Start a round with a copy of the weights for each device."""
        self._rows = starts.states()
        self._devices = self._live = starts.devices
        self._packed = False  # whether the rows have what their copies do
        self._rate = learning_rate
        views = stacked_views(self._layout, self._rows)
        trained = {field.name for field in self._layout.fields if field.trainable}
        apart = set(views) if is_one_kernel(self._recipe) else views.keys() - trained
        self._homes = {name: view for name, view in views.items() if name in apart}
        # Without strides, which neither vmap writes into nor an optimizer of one kernel heeds.
        self._copies = {name: view.clone(memory_format=torch.contiguous_format) for name, view in self._homes.items()}
        self._buffers = {name: copy for name, copy in self._copies.items() if name not in trained}
        own = {name: self._copies.get(name, view) for name, view in views.items() if name in trained}
        self._parameters = {name: nn.Parameter(one.data) for name, one in own.items()}
        self._optimizer = self._recipe.build(list(self._parameters.values()))
        set_learning_rate(self._optimizer, learning_rate)

    def forward(self, values: Tensor) -> Tensor:
        """Returns the outputs of the live devices' rows."""
        self._packed = False
        rows = values.view(self._live, -1, *values.shape[1:])
        buffers = {name: tensor[: self._live] for name, tensor in self._buffers.items()}
        if not self._runs.apart:
            return self._runs.each(self._parameters, buffers, rows).flatten(0, 1)
        parameters, own = _each(self._parameters, self._live), _each(buffers, self._live)
        # Copies, since a module may write into its inputs, and views of one tensor would all count as changed then.
        form = self._runs.image_format if values.dim() == 4 else torch.preserve_format
        alone = [one.clone(memory_format=form) for one in rows.unbind()]
        return torch.cat([self._runs.one(*given) for given in zip(parameters, own, alone, strict=True)])

    def step(self, live: int) -> None:
        """Step all live devices in one call."""
        self._packed = False
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
        found = torch.ones(self._devices, dtype=torch.bool, device=self._runs.accelerator)
        for flat in flats:
            found &= torch.linalg.vector_norm(flat, dim=1).isfinite()
        return found

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
        """Returns every device's weights, in the packed rows."""
        if not self._packed:
            for name, home in self._homes.items():
                home.copy_(self._copies[name])
            self._packed = True
        return self._rows


def _each(tensors: Mapping[str, Tensor], devices: int) -> list[dict[str, Tensor]]:
    """Returns stacked tensors as those of each device: views, whose gradients are put together once."""
    if not tensors:
        return [{} for _ in range(devices)]
    return [dict(zip(tensors, one)) for one in zip(*(tensor.unbind() for tensor in tensors.values()))]
