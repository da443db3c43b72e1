"""Times a model's layers one by one, each with what a prediction of its time can be made from."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsl.argument_types import checks_types
from fsl.costs.work_counting import in_parts
from fsl.errors import ConfigError
from fsl.inference.profiles.this_machine import with_threads
from fsl.segments.calling import outputs_of
from fsl.segments.tensor_trees import Values, as_values

LayerKind = Literal[
    "convolution", "pointwise", "depthwise", "linear", "attention", "normalisation", "activation", "pooling", "other"
]


@dataclass(frozen=True)
class Layer:
    """A call of a module that computes something itself, of a batch: kind, multiply-adds, elements in and out."""

    name: str
    kind: LayerKind
    macs: int
    parameters: int
    input_elements: int
    output_elements: int


@dataclass(frozen=True)
class TimedModel:
    """A model's layers in the order of their calls, the seconds of each, and those of the whole model.

    Seconds are 10th percentiles, so that a machine that is busy beside does not make long layers slower than short
    ones. What a forward does between its layers, as to add two branches, is in `whole` alone. Transformer layers are
    timed in their parts, also in `whole`, and not in torch's fast path, which fuses them in evaluation.
    """

    layers: tuple[Layer, ...]
    seconds: tuple[float, ...]
    whole: float

    def __post_init__(self) -> None:
        numbers = (*self.seconds, self.whole)
        if len(self.layers) != len(self.seconds) or not all(math.isfinite(s) and s > 0 for s in numbers):
            raise ConfigError(f"{len(self.layers)} layers, seconds {self.seconds[:3]}...: give each a number above 0")


@checks_types(leave=("inputs",))
def time_layers(
    model: nn.Module, inputs: Values | Any, *, repetitions: int = 50, warm_up: int = 5, threads: int = 1
) -> TimedModel:
    """Time each layer of a model in evaluation mode on the CPU, with a batch as the model takes it.

    Passes over the whole model take turns with those in which layers are timed. ConfigError for numbers that cannot be.
    """
    given = as_values(inputs)
    if given is None or repetitions < 1 or warm_up < 0 or threads < 1:
        raise ConfigError(
            f"repetitions={repetitions}, warm_up={warm_up}, threads={threads}: there must be inputs, at least one "
            "repetition and one thread, and no less than 0 repetitions to warm up"
        )
    model.eval()
    with with_threads(threads), _in_layers(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        layers = _layers(model, given)
        seconds: list[list[float]] = []
        wholes: list[float] = []
        for _ in range(warm_up + repetitions):
            began = time.perf_counter()
            outputs_of(model, given)
            wholes.append(time.perf_counter() - began)
            seconds.append(_one_pass(model, given))
    each = tuple(max(1e-9, _quick(times)) for times in zip(*seconds[warm_up:], strict=True))
    return TimedModel(layers, each, _quick(wholes[warm_up:]))


@contextmanager
def _in_layers() -> Iterator[None]:
    """Let transformer layers call what they consist of, whether it is watched or not."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _quick(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 10))


def _one_pass(model: nn.Module, inputs: Values) -> list[float]:
    seconds: list[float] = []
    began = [0.0]

    def before(*_: Any) -> None:
        began[0] = time.perf_counter()

    def behind(*_: Any) -> None:
        seconds.append(time.perf_counter() - began[0])

    leaves = _leaves(model)
    hooks = [leaf.register_forward_pre_hook(before) for _, leaf in leaves]
    hooks += [leaf.register_forward_hook(behind) for _, leaf in leaves]
    try:
        outputs_of(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seconds


def _layers(model: nn.Module, inputs: Values) -> tuple[Layer, ...]:
    found: list[Layer] = []
    counter = FlopCounterMode(display=False)
    begun = [0]

    def before(*_: Any) -> None:
        begun[0] = counter.get_total_flops()

    def behind(name: str, module: nn.Module, given: Any, output: Any) -> None:
        macs = (counter.get_total_flops() - begun[0]) // 2
        weights = sum(parameter.numel() for parameter in module.parameters())
        found.append(Layer(name, kind_of(module), macs, weights, _elements(given), _elements(output)))

    leaves = _leaves(model)
    hooks = [leaf.register_forward_pre_hook(before) for _, leaf in leaves]
    for name, leaf in leaves:
        hooks.append(leaf.register_forward_hook(lambda *call, name=name: behind(name, *call)))
    try:
        with in_parts(), counter:
            outputs_of(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)


def kind_of(module: nn.Module) -> LayerKind:
    """Returns the kind of a layer; kinds are what layers of alike speed have in common."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if module.groups > 1 and module.groups == module.in_channels:
            return "depthwise"
        return "pointwise" if max(module.kernel_size) == 1 else "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    name = type(module).__name__
    if type(module).__module__ == nn.ReLU.__module__:
        return "activation"
    return "normalisation" if "Norm" in name else "pooling" if "Pool" in name else "other"


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns modules without children, and those that hold all the weights of theirs, as a padded convolution."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if not inside and (not list(module.children()) or _holds_all(module)):
            found.append((name, module))
    return found


def _holds_all(module: nn.Module) -> bool:
    own = {id(parameter) for parameter in module._parameters.values()}
    every = {id(parameter) for parameter in module.parameters()}
    # Attention calls no child, but takes the weights of one.
    return isinstance(module, nn.MultiheadAttention) or (bool(every) and every <= own)


def _elements(given: Any) -> int:
    tensors = given if isinstance(given, tuple | list) else (given,)
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor))
