"""A stack of linear layers under SGD, whose devices' weights nobody forms: the fastest for few steps on few rows."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fsl.engines.low_rank_linear import LowRankLinear
from fsl.engines.sgd_history import SgdHistory
from fsl.engines.stack import NotStackedError, Stack, Starts
from fsl.importing.spec import Spec
from fsl.round.low_rank_update import LayerRows, parameters_of
from fsl.segments.learner import SegmentRuntime
from fsl.segments.states import Layout, State


class LowRankStack(Stack):
    """One segment whose trained tensors all belong to `nn.Linear` layers, in a copy of its module."""

    updates = True

    def __init__(self, runtime: SegmentRuntime, optimizer: Spec):
        """RuntimeError where `why_not` gives a reason."""
        if reason := why_not(runtime, optimizer):
            raise RuntimeError(reason)
        self._layout = runtime.layout
        self._optimizer = optimizer
        self._module = runtime.copied()
        self._layers: dict[str, LowRankLinear] = {}
        for name, linear in _linears(self._module).items():
            self._layers[name] = layer = LowRankLinear(linear)
            if not name:
                self._module = layer
                continue
            parent, _, child = name.rpartition(".")
            setattr(self._module.get_submodule(parent), child, layer)

    def bytes_of(self, rows: int) -> int:
        """Returns the bytes of what its layers keep of a device's rows."""
        return 4 * rows * sum(layer.ins + layer.outs for layer in self._layers.values())

    def begin(self, starts: Starts, learning_rate: float, rows: int) -> None:
        """Start a round; no copy of the weights is made."""
        history = SgdHistory.of(self._optimizer)
        assert history is not None
        self._history, self._rate = history, learning_rate
        self._starts = Starts(starts.devices, starts.shared, starts.own)  # the layers copy what has changed
        found = starts.own if starts.shared is None else starts.shared.flats
        assert found is not None
        tensors = stacked_views(self._layout, found)
        for name, layer in self._layers.items():
            changes = [one.get(name) for one in starts.changes]
            layer.begin(*_of(tensors, name), history, starts.devices, rows, changes)

    def forward(self, values: Tensor) -> Tensor:
        """Returns the outputs of the live devices' rows."""
        outputs: Tensor = self._module(values)
        return outputs

    def step(self, live: int) -> None:
        """Count one more gradient."""
        self._history.step(self._rate)
        for name, layer in self._layers.items():
            if layer.passes != (1, 1):
                used = "{} times, and has {} gradients".format(*layer.passes)
                raise NotStackedError(f"in a step the layer '{name}' is used {used}")
            layer.stepped()
        self.leave(live)

    def leave(self, live: int) -> None:
        """Go on with the first devices."""
        for layer in self._layers.values():
            layer.leave(live)

    def sound(self) -> Tensor:
        """Returns by device whether what it trained with is finite: its weights are sums of that."""
        return torch.stack([layer.sound() for layer in self._layers.values()]).all(0)

    def mean(self, shares: Tensor) -> State:
        """Returns the weighted sum of the devices' states: one product for each layer."""
        for layer in self._layers.values():
            layer.drop(shares == 0)
        if self._starts.shared is None:
            states = self.states()
            return State({dtype: shares.double() @ flat.double() for dtype, flat in states.items()})
        counted = float((shares * next(iter(self._layers.values())).starts()).sum())
        mean = State({dtype: flat.double() * counted for dtype, flat in self._starts.shared.flats.items()})
        views = stacked_views(self._layout, mean.flats)
        for name, layer in self._layers.items():
            weight, bias = _of(views, name)
            less, less_bias = layer.change(shares)
            weight.sub_(less)
            if bias is not None and less_bias is not None:
                bias.sub_(less_bias)
        return mean

    def states(self) -> dict[torch.dtype, Tensor]:
        """Returns every device's weights, formed now."""
        states = self._starts.states()
        views = stacked_views(self._layout, states)
        for name, layer in self._layers.items():
            layer.finish(*_of(views, name))
        return states

    def changes(self) -> list[dict[str, LayerRows]] | None:
        """Returns each device's change since the start; None where weights decayed."""
        if any(bool((layer.starts() != 1.0).any()) for layer in self._layers.values()):
            return None
        by_layer = [layer.changes() for layer in self._layers.values()]
        return [dict(zip(self._layers, rows)) for rows in zip(*by_layer)]


def why_not(runtime: SegmentRuntime, optimizer: Spec) -> str | None:
    """Returns why a segment under this optimizer is no such stack, in words; None where it is."""
    if SgdHistory.of(optimizer) is None:
        return f"optimizer {optimizer.target} is no torch.optim.SGD"
    layout = runtime.layout
    if layout.has_buffers or layout.frozen.tensors:
        return f"the {runtime.name} has buffers or frozen parameters"
    linears = _linears(runtime.module)
    held = {f"{name}.{part}".lstrip(".") for name in linears for part in ("weight", "bias")}
    other = next((field.name for field in layout.fields if field.aliases or field.name not in held), None)
    if other is not None:
        return f"'{other}' of the {runtime.name} is no weight of a torch.nn.Linear of its own"
    hooked = (m for m in runtime.module.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks)
    if next(hooked, None) is not None:
        return f"the {runtime.name} has hooks"
    return None if linears else f"the {runtime.name} trains nothing"


def low_rank_pays(runtime: SegmentRuntime, sizes: Sequence[int]) -> bool:
    """Returns whether batches of these sizes make a device's weights dearer than its rows' products with each other.

    A step with weights reads and writes them some six times, and a core computes some ten products while it moves a
    number; without them it multiplies its rows with those of all steps before it.
    """
    steps, rows = len(sizes), max(sizes)
    linears = _linears(runtime.module).values()
    products = sum(rows * rows * steps * (one.in_features + one.out_features) for one in linears)
    return products <= 120 * sum(one.in_features * one.out_features for one in linears)


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: part for name, part in module.named_modules() if type(part) is nn.Linear}


def stacked_views(layout: Layout, flats: Mapping[torch.dtype, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of packed states, (size,) or (D, size), by name: views (...) or (D, ...)."""
    found = {}
    for field in layout.fields:
        flat = flats[field.dtype]
        part = flat[..., field.start : field.start + field.shape.numel()]
        found[field.name] = part.view(*flat.shape[:-1], *field.shape)
    return found


def _of(tensors: dict[str, Tensor], layer: str) -> tuple[Tensor, Tensor | None]:
    weight, bias = parameters_of(layer)
    return tensors[weight], tensors.get(bias)
