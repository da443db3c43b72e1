"""Puts torch's compiler before a function of tensors, and takes what it makes only where it gives the same numbers."""

import os
import shutil
from collections.abc import Callable, Iterable
from types import FunctionType

import torch
from torch import Tensor

from fsl.faults import said

TensorFunction = Callable[[dict[str, Tensor], dict[str, Tensor], Tensor], Tensor]  # parameters, buffers, rows

_SHAPES = 4  # of rows that are compiled for: each takes seconds, and devices with fewer batches make many
_CALLS = 3  # of a trial on CUDA: the first warms up, the second records a graph, the third replays it
_NEAR = {torch.float64: 1e-9, torch.float32: 1e-4}  # of a tensor's norm; a rectifier may turn over by rounding
_NEAR_SHORT = 2e-2  # in bfloat16, of eight digits


class CompiledFunction:
    """A function of parameters, buffers and rows that runs compiled, for shapes that it has tried: few, and whole.

    A shape is tried when it first comes, on copies of what came: outputs, buffers and all gradients of compiled code
    are held against those of the function. Where they differ, where torch cannot compile it (no C++ compiler, what a
    model does), and for more shapes than a few, the function itself runs; `say` is told why.
    """

    def __init__(self, name: str, function: TensorFunction, accelerator: torch.device, say: Callable[[str], None]):
        self._name, self._function, self._say = name, function, say
        self._accelerator = accelerator
        self._compiled: TensorFunction | None = None
        self._known: set[object] = set()
        self._off = False

    def __call__(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], rows: Tensor) -> Tensor:
        """Returns what the function does, by compiled code where it may."""
        if not self._may(parameters, buffers, rows):
            return self._function(parameters, buffers, rows)
        assert self._compiled is not None
        try:
            return self._compiled(parameters, buffers, rows)
        except Exception as error:  # a model's own is raised again by the function
            self._stop(_plainly(error, self._accelerator))
            return self._function(parameters, buffers, rows)

    def _may(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], rows: Tensor) -> bool:
        if self._off:
            return False
        key = rows.shape, rows.dtype, rows.requires_grad, torch.is_grad_enabled()
        if key in self._known:
            return True
        if len(self._known) == _SHAPES:
            self._say(f"the {self._name} has batches of more than {_SHAPES} shapes, and runs uncompiled for the others")
            return False
        self._compiled = self._compiled or _compiled(self._function, self._accelerator)
        try:
            calls = _CALLS if self._accelerator.type == "cuda" else 1
            alike = all(self._alike(parameters, buffers, rows) for _ in range(calls))
        except Exception as error:
            self._stop(_plainly(error, self._accelerator))
            return False
        if not alike:
            self._stop("compiled code gives other numbers")
            return False
        self._known.add(key)
        return True

    def _alike(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], rows: Tensor) -> bool:
        assert self._compiled is not None
        wanted = _passed(self._function, parameters, buffers, rows)
        found = _passed(self._compiled, parameters, buffers, rows)
        return len(found) == len(wanted) and all(_near(a, b) for a, b in zip(found, wanted))

    def _stop(self, reason: str) -> None:
        self._off = True
        self._say(f"the {self._name} runs uncompiled: {reason}")


def _compiled(function: TensorFunction, accelerator: torch.device) -> TensorFunction:
    """Returns the function with torch's compiler before it: one graph for each shape, or an exception."""

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor], rows: Tensor) -> Tensor:
        return function(parameters, buffers, rows)

    # torch keeps its graphs, eight at most, by code object: each function has one of its own.
    own = FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
    mode = "reduce-overhead" if accelerator.type == "cuda" else None
    made: TensorFunction = torch.compile(own, fullgraph=True, dynamic=False, mode=mode)
    return made


def _passed(
    function: TensorFunction, parameters: dict[str, Tensor], buffers: dict[str, Tensor], rows: Tensor
) -> list[Tensor]:
    """Returns outputs, buffers and gradients of a pass in both directions over copies of these tensors."""
    own = {name: _copied(one) for name, one in parameters.items()}
    kept = {name: _copied(one) for name, one in buffers.items()}
    given = _copied(rows)
    outputs = function(own, kept, given.clone())  # a module may write into its inputs, which no leaf allows
    found = [outputs.detach().clone(), *kept.values()]
    learning = [one for one in (*own.values(), given) if one.requires_grad]
    if outputs.requires_grad:
        gradient = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
        gradients = torch.autograd.grad(outputs, learning, gradient, allow_unused=True)
        found += [_or_zero(one, tensor).clone() for one, tensor in zip(gradients, learning)]
    return found


def _copied(tensor: Tensor) -> Tensor:
    """Returns a leaf with the same values and strides."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return empty.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)


def _or_zero(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if gradient is None else gradient


def _near(found: Tensor, wanted: Tensor) -> bool:
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        return False
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    bound = _NEAR.get(wanted.dtype, _NEAR_SHORT)
    one, other = (torch.nan_to_num(tensor.detach()).double() for tensor in (found, wanted))
    return bool((one - other).norm() <= bound * other.norm() + 1e-12)


def _plainly(error: Exception, accelerator: torch.device) -> str:
    """Returns why nothing was compiled, in words."""
    if accelerator.type == "cpu" and not _has_compiler(("c++", "g++", "clang++")):
        return "this machine has no C++ compiler (g++, clang++)"
    return f"torch does not compile it ({said(error)[:160]})"


def _has_compiler(names: Iterable[str]) -> bool:
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ((named,) if named else names))
