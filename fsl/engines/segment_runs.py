"""Runs a segment's module with tensors that it is given: those of one device, or of several side by side."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from fsl.engines.compiled_function import CompiledFunction, TensorFunction
from fsl.engines.stacked_linear import StackedLinear
from fsl.segments.learner import SegmentRuntime
from fsl.segments.precision import Precision, computing


class SegmentRuns:
    """A copy of a segment's module, which the stacks of a pool share: they give it weights. It computes in `precision`.

    `apart`: whether devices run one after another, by `one`, with images in `image_format`. So convolutions do on a
    CPU, of which `vmap` makes groups, which are slower there, with channels last, where pooling is quicker. In fewer
    digits all layers with weights but linear ones do: `vmap` takes them apart before autocast sees them.
    `one` takes a device's parameters and buffers by name, and its rows (R, ...). `each` takes those of D devices behind
    each other, (D, ...) and (D, R, ...), and returns (D, R, ...).
    """

    def __init__(self, runtime: SegmentRuntime, precision: Precision = "float32"):
        self._module = runtime.copied()
        self._precision: Precision = precision
        self._name, self.accelerator = runtime.name, runtime.accelerator
        parts = list(self._module.modules())
        if precision == "float32":
            self.apart = self.accelerator.type == "cpu" and any(isinstance(part, nn.Conv2d) for part in parts)
        else:
            self.apart = not all(type(part) is nn.Linear or _plain(part) for part in parts)
        self.image_format = torch.channels_last if precision == "float32" else torch.preserve_format
        self._stacked = self._module
        if precision != "float32" and not self.apart:
            self._stacked = copy.deepcopy(self._module)
            StackedLinear.put_into(self._stacked)
        self._one: TensorFunction = partial(_called, self._module)
        self._each: TensorFunction = torch.func.vmap(partial(_called, self._stacked))

    def compile(self, say: Callable[[str], None]) -> None:
        """From now on run compiled code where torch makes some that gives the same; `say` is told once why it does not.

        Before that every shape would be compiled, those of a trial too.
        """
        self._one = CompiledFunction(self._name, self._one, self.accelerator, say)
        self._each = CompiledFunction(self._name, self._each, self.accelerator, say)

    def one(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Returns the outputs (R, ...) of one device's rows."""
        with computing(self._precision, self.accelerator):
            return self._one(dict(parameters), dict(buffers), rows)

    def each(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Returns the outputs (D, R, ...) of several devices' rows."""
        with computing(self._precision, self.accelerator):
            return self._each(dict(parameters), dict(buffers), rows)


def _plain(part: nn.Module) -> bool:
    """Returns whether a module has no tensors of its own."""
    return next(chain(part.parameters(recurse=False), part.buffers(recurse=False)), None) is None


def _called(module: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor], rows: Tensor) -> Tensor:
    outputs: Tensor = torch.func.functional_call(module, (parameters, buffers), (rows,))
    return outputs
