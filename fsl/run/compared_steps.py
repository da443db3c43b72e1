"""Steps that are taken to be compared: of the plain model, and of its segments as a node trains them."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fsl.errors import NO_GRADIENT, SplitError
from fsl.round.workload import Worker
from fsl.seeds import DEFAULT_GENERATOR, reseed
from fsl.segments.backward import send_back
from fsl.segments.calling import call, outputs_of
from fsl.segments.learner import runtimes_of
from fsl.segments.modes import evaluating, start_training
from fsl.segments.module_memories import count_on, remembered, same
from fsl.segments.states import Replica
from fsl.segments.tensor_places import tables
from fsl.segments.tensor_trees import Values, gradient_of, mapped, received

Loss = Callable[[Tensor, Tensor], Tensor]
_SEED = 20


@dataclass(frozen=True)
class Step:
    """What came out of one training step, by the unsplit model's names; a gradient is None where there is none."""

    outputs: Any
    loss: Tensor
    gradients: Mapping[str, Tensor | None]
    buffers: Mapping[str, Tensor | None]


class PlainTrial:
    """A copy of the model, its weights moved a little in place."""

    def __init__(self, model: nn.Module, accelerator: torch.device):
        self.model = copy.deepcopy(model).to(accelerator)
        start_training(self.model)
        self._original = _storages(_named(model))
        self._lasting, transient = tables(self.model)
        self._slots = self._lasting | transient
        _move([table[key] for table, key in self._lasting.values()])
        self._found = {
            name: (table[key], None if table[key] is None else table[key].detach().clone())
            for name, (table, key) in self._slots.items()
        }
        self._parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        self._before = self.remembered()

    def state(self) -> dict[str, Tensor]:
        """What a step begins with, by state_dict key."""
        values = {name: self._found[name][1] for name in self._lasting}
        return {name: value for name, value in values.items() if value is not None}

    def step(self, inputs: Values, targets: Tensor, loss: Loss) -> Step:
        """One forward and backward from the first values. SplitError for what no copy of the model can do."""
        for name, (table, key) in self._slots.items():
            table[key], value = self._found[name]
            if value is not None:
                with torch.no_grad():
                    table[key].copy_(value)
                table[key].grad = None
        with _Watch(inputs.device, self._original) as watch:
            outputs = outputs_of(self.model, inputs.clone())
            value = loss(outputs, targets)
            _backward(value)
        if watch.touched:
            raise SplitError(
                f"{type(self.model).__name__} uses '{watch.touched[0]}' by way of a function that holds the model (a "
                "lambda over self, a global): copies of it go on with the original's; make it a method"
            )
        now = {name: table[key] for name, (table, key) in self._lasting.items()}
        self._refuse_buffers(now)
        self._refuse_frozen(now)
        return Step(
            _kept(outputs),
            _kept(value),
            {name: _kept(tensor.grad) for name, tensor in now.items() if name in self._parameters},
            {name: _kept(tensor) for name, tensor in now.items() if name not in self._parameters},
        )

    def _refuse_buffers(self, now: Mapping[str, Any]) -> None:
        for name, tensor in now.items():
            first = self._found[name][1]
            if tensor is None or first is None or (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
                raise SplitError(
                    f"forward puts another kind of tensor in place of '{name}' than it had, so that devices' could not "
                    "be averaged; keep its shape and dtype"
                )
            if tensor.requires_grad and name not in self._parameters:
                raise SplitError(f"forward leaves a step's graph in the buffer '{name}'; detach() what it puts there")
        new = next((name for name in tables(self.model)[0] if name not in self._lasting), None)
        if new is not None:
            raise SplitError(
                f"forward adds '{new}' to the model's state; register it with its shape, or with persistent=False"
            )

    def _refuse_frozen(self, now: Mapping[str, Any]) -> None:
        for name, tensor in now.items():
            first = self._found[name][1]
            frozen = name in self._parameters and not tensor.requires_grad
            if frozen and first is not None and not torch.equal(tensor, first):
                raise SplitError(
                    f"forward changes the frozen parameter '{name}' (requires_grad=False), which all devices of a node "
                    "share; register it as a buffer, which each device has for itself and which is averaged"
                )

    @property
    def changed(self) -> list[str]:
        """The attributes that steps have changed so far, by name."""
        return [n for n, value in self.remembered().items() if not same(value, self._before.get(n))]

    def remembered(self) -> dict[str, Any]:
        """What modules keep besides parameters and buffers, as it is now, by name."""
        return remembered(self.model)

    def count_on(self, since: Mapping[str, Any]) -> bool:
        """Let what steps have counted `since` then be what it would be after many more; whether there is any."""
        return count_on(self.model, since)

    def evaluate(self, inputs: Values) -> Any:
        """The outputs in evaluation mode."""
        self.model.eval()
        for name, (table, key) in self._slots.items():
            table[key], value = self._found[name]
            if value is not None:
                with torch.no_grad():
                    table[key].copy_(value)
        with _Watch(inputs.device, {}), torch.no_grad():
            return _kept(outputs_of(self.model, inputs.clone()))


def _collecting(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


class SplitTrial:
    """Copies of a worker's segments, apart from each other as on device and edge; each step is of a new device."""

    def __init__(self, worker: Worker, state: Mapping[str, Tensor]):
        modules = copy.deepcopy({name: segment.module for name, segment in worker.chain.items()})  # ties are kept
        self.runtimes = list(runtimes_of(modules, worker.accelerator).values())
        self._cuts = worker.cuts
        self._answered = worker.workload.head is None  # devices wait for cut gradients
        # What modules have before anything is put into them: nobody should be using it.
        frozen = {id(tensor) for runtime in self.runtimes for tensor in runtime.layout.frozen.tensors.values()}
        named = (pair for runtime in self.runtimes for pair in _named(runtime.module))
        self._outside = _storages((name, tensor) for name, tensor in named if id(tensor) not in frozen)
        for runtime in self.runtimes:
            runtime.layout.frozen.load(state)
        self._states = [runtime.layout.pack(state, worker.accelerator) for runtime in self.runtimes]

    def step(self, inputs: Values, targets: Tensor, loss: Loss) -> Step:
        """One step as device and edge take it: the graph is cut, and a gradient comes back."""
        replicas = self._install()
        ends: list[tuple[Values, Values]] = []
        with _Watch(inputs.device, self._outside) as watch:
            outputs: Any = received(call(self.runtimes[0].module, inputs.clone()))
            for runtime in self.runtimes[1:]:
                leaf = mapped(_collecting, outputs.detach())
                ends.append((outputs, leaf))
                outputs = received(call(runtime.module, leaf.clone()))
            value = loss(outputs, targets)
            _backward(value)
            for (smashed, leaf), cut in reversed(list(zip(ends, self._cuts))):
                gradient = gradient_of(leaf)
                if self._answered and value.requires_grad and leaf.requires_grad and gradient is None:
                    raise SplitError(f"cut={cut!r}: {NO_GRADIENT}")
                if smashed.requires_grad and gradient is not None:
                    send_back(smashed, gradient)
        if watch.touched:
            raise SplitError(
                f"the model also holds '{watch.touched[0]}' where a device's own cannot be put (a tuple, an object, a "
                "function), and uses it from there; use the module's attribute, or keep it in a list or dict"
            )
        gradients: dict[str, Tensor | None] = {}
        buffers: dict[str, Tensor | None] = {}
        for runtime, replica in zip(self.runtimes, replicas):
            replica.collect()
            for field, tensor in zip(runtime.layout.fields, replica.tensors):
                for name in (field.name, *field.aliases):
                    if field.trainable is None:
                        buffers[name] = _kept(tensor)
                    else:
                        gradients[name] = _kept(tensor.grad)
        return Step(_kept(outputs), _kept(value), gradients, buffers)

    def evaluate(self, inputs: Values) -> Any:
        """The outputs in evaluation mode."""
        self._install()
        modules = [runtime.module for runtime in self.runtimes]
        values = inputs.clone()
        with evaluating(*modules), _Watch(inputs.device, {}), torch.no_grad():
            for module in modules:
                values = received(call(module, values))
        return _kept(values)

    def _install(self) -> list[Replica]:
        return [runtime.hold(state) for runtime, state in zip(self.runtimes, self._states)]


class _Watch(TorchDispatchMode):
    """Each random operation draws as if it were the first, and uses of certain tensors are noted by name."""

    def __init__(self, device: torch.device, watched: Mapping[int, tuple[str, Tensor]]):
        super().__init__()
        self.touched: list[str] = []
        self._device = device
        self._watched = watched
        random.seed(_SEED)
        np.random.seed(_SEED)
        reseed(_SEED, device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            reseed(_SEED, self._device)
        if self._watched:
            for arg in args:
                for tensor in arg if isinstance(arg, list | tuple) else (arg,):
                    if isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.numel():
                        found = self._watched.get(tensor.untyped_storage()._cdata)
                        if found is not None:
                            self.touched.append(found[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def generators(accelerator: torch.device) -> Iterator[None]:
    """Hold the random generators of torch, NumPy and Python, and leave them as found."""
    python, numpy = random.getstate(), np.random.get_state()
    cuda = [accelerator.index or 0] if accelerator.type == "cuda" else []
    with DEFAULT_GENERATOR, torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _backward(loss: Tensor) -> None:
    if loss.requires_grad:
        loss.backward()


def _move(tensors: Iterable[Tensor]) -> None:
    """Change all values in place, so that whatever still uses the old ones gives different results."""
    draw = torch.Generator().manual_seed(_SEED)
    seen: set[int] = set()
    with torch.no_grad():
        for tensor in tensors:
            if id(tensor) in seen or not tensor.is_floating_point():
                continue
            seen.add(id(tensor))
            tensor.mul_(1.0625)
            if isinstance(tensor, nn.Parameter):  # also those that begin as zeros
                tensor.add_(0.01 * torch.randn(tensor.shape, generator=draw).to(tensor))


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _storages(named: Iterable[tuple[str, Tensor]]) -> dict[int, tuple[str, Tensor]]:
    """By their storage, whose address is theirs as long as they are held here."""
    return {tensor.untyped_storage()._cdata: (name, tensor) for name, tensor in named if tensor.numel()}


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
