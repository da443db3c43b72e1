"""Traces a forward with torch.fx, and refuses by name what a graph of it would lose.

fx runs the Python of forward once and keeps the operations on tensors. The graph lacks what surrounds them (a context
such as `torch.no_grad`, hooks, numbers drawn by Python), so this module watches for it during the trace.
"""

import builtins
import inspect
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fsl.models.quiet_tracer import TRACING, QuietTracer
from fsl.seeds import DEFAULT_GENERATOR
from fsl.segments.tensor_places import left_as_found
from fsl.split.traced_buffers import Held, buffers_of, put_back
from fsl.split.traced_checks import record_check

_OWN_MODULE = "put it in a module of its own, which is called as it is"


class CannotCut(Exception):  # noqa: N818 - it is caught and told as a SplitError
    """Says why a model cannot be cut there."""


def trace_modes(
    model: nn.Module, parent: str, trained: Mapping[int, bool], inputs: tuple[str, ...] = ()
) -> tuple[tuple[fx.Graph, fx.Graph], dict[str, Tensor]]:
    """Trace a forward into graphs for training and for evaluation, and the tensors that it makes.

    It traces through the model, `parent` and its ancestors, and leaves the model as found. `trained`: by id, a module's
    mode in training.
    """
    for name, module in _ancestors(model, parent):
        refuse_dropped(name, module)
    with TRACING, DEFAULT_GENERATOR, _same_draws(), left_as_found(model), _patched(_ancestors(model, parent)):
        known = set(vars(model))
        graphs = []
        for training in (True, False):
            for module in model.modules():
                module.training = training and trained.get(id(module), True)
            buffers = buffers_of(model)
            graphs.append(_trace(model, parent, inputs))
            _refuse_replaced(put_back(buffers))
        constants = {n: value for n, value in vars(model).items() if n not in known and isinstance(value, Tensor)}
    return (graphs[0], graphs[1]), constants


def _refuse_replaced(name: str | None) -> None:
    if name is not None:
        raise CannotCut(
            f"forward puts another tensor in place of the buffer '{name}', which a graph does not: change it in place "
            f"(self.{name.rpartition('.')[2]}.copy_(...)), or {_OWN_MODULE}"
        )


def refuse_dropped(name: str, module: nn.Module) -> None:
    """Raise CannotCut for a module to take apart that has hooks or code which run only on a call of the whole."""
    where = f"'{name}'" if name else type(module).__name__
    for table, what in _HOOKS.items():
        if getattr(module, table, None):
            raise CannotCut(
                f"{where} has {what}, which would not run when it is taken apart; remove it, or cut elsewhere"
            )
    if type(module).__call__ is not nn.Module.__call__:
        raise CannotCut(f"{where} has a __call__ of its own, which would not run when it is taken apart; use forward")
    if "forward" in vars(module):
        raise CannotCut(
            f"{where} has had its forward replaced, which taking it apart would undo; override it in a class"
        )


_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}


def _ancestors(model: nn.Module, parent: str) -> list[tuple[str, nn.Module]]:
    steps = parent.split(".") if parent else []
    names = ["", *(".".join(steps[: index + 1]) for index in range(len(steps)))]
    return [(name, model.get_submodule(name)) for name in names]


class _Tracer(QuietTracer):
    def __init__(self, parent: str, inputs: tuple[str, ...]):
        super().__init__()
        self._parent = parent
        self._inputs = inputs
        self._context = _context()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not f"{self._parent}.".startswith(f"{module_qualified_name}.")

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Returns the traced inputs: those that a batch names, or else one; other arguments keep their defaults."""
        taken = list(inspect.signature(root_fn).parameters.values())[1:]
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = [p for p in taken if p.default is p.empty and (p.kind in positional or p.kind is p.KEYWORD_ONLY)]
        first = next((p for p in taken if p.kind in (*positional, inspect.Parameter.VAR_POSITIONAL)), None)
        if self._inputs and set(self._inputs) <= {p.name for p in taken}:
            return self._named(root_fn, taken, [p.name for p in needed])
        others = [p.name for p in needed if p is not first]
        if first is None or others:
            names = [p.name for p in needed] or [p.name for p in taken]
            raise _Inputs(
                f"takes {len(names)} inputs ({', '.join(names)}); give a batch that has them: split(model, at, "
                "example=batch), a run takes one of its data"
            )
        return root_fn, [self.root, self.create_proxy("placeholder", first.name, (), {})]

    def _named(self, root_fn: Any, taken: list[inspect.Parameter], needed: list[str]) -> tuple[Any, list[Any]]:
        """Returns a root that is called by the names of a batch's inputs."""
        if missing := [name for name in needed if name not in self._inputs]:
            raise _Inputs(f"takes {', '.join(missing)} too, which a batch has not")
        signature = inspect.signature(root_fn)
        names = [p.name for p in taken if p.name in self._inputs]

        def root(module: Any, *values: Any) -> Any:
            bound = signature.bind_partial(module)
            bound.arguments.update(dict(zip(names, values, strict=True)))
            return root_fn(*bound.args, **bound.kwargs)

        return root, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Read buffers anew in every forward, like parameters."""
        if isinstance(attr_val, Tensor):
            for name, tensor in (*self.root.named_parameters(), *self.root.named_buffers()):
                if tensor is attr_val:
                    if name not in parameter_proxy_cache:
                        node = self.create_node("get_attr", name, (), {})
                        parameter_proxy_cache[name] = Held(node, self, attr_val)
                    return parameter_proxy_cache[name]
        return attr_val

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if node.op not in ("placeholder", "output"):
            self._refuse_context(node)
        return node

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Put a check that only raises into the graph; refuse any other path that depends on values."""
        frame = inspect.currentframe()
        outcome = record_check(self, obj, frame.f_back if frame is not None else None)
        return super().to_bool(obj) if outcome is None else outcome

    def _refuse_context(self, node: fx.Node) -> None:
        for what, value in _context().items():
            if value != self._context[what]:
                name = node.target if node.op == "call_module" else node.name
                remedy = ", or freeze its parameters with requires_grad_(False) instead" if "grad" in what else ""
                raise CannotCut(f"'{name}' runs under {what}, which a graph does not keep: {_OWN_MODULE}{remedy}")


class _Inputs(CannotCut):
    pass


class _Eager(TorchDispatchMode):
    """Records computations during the trace that depend on no input: they would be the same in every step."""

    def __init__(self, model: nn.Module):
        super().__init__()
        held = (
            (f"{prefix}.{name}" if prefix else name, value)
            for prefix, m in model.named_modules()
            for name, value in vars(m).items()
        )
        self._held = {t.untyped_storage()._cdata: name for name, t in held if isinstance(t, Tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise CannotCut("it draws random numbers: use torch.rand_like and its like, or a module of their own")
        if func._schema.is_mutable and args and isinstance(args[0], Tensor):
            name = self._held.get(args[0].untyped_storage()._cdata)
            if name is not None:
                raise CannotCut(f"it changes the tensor '{name}' in place: register it as a buffer")
        return func(*args, **(kwargs or {}))


def _trace(model: nn.Module, parent: str, inputs: tuple[str, ...]) -> fx.Graph:
    drawn = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    try:
        with _Eager(model):
            graph = _Tracer(parent, inputs).trace(model)
        if (random.getstate(), np.random.get_state()[1].tolist()) != drawn:  # type: ignore[index]
            raise CannotCut(f"it draws random numbers by Python or NumPy, which would be drawn once: {_OWN_MODULE}")
        _pick_logits(graph)
        for node in list(graph.nodes):
            if node.op == "get_attr" and not node.users:  # the forward asked only for its shape
                graph.erase_node(node)
    except _Inputs as error:
        raise CannotCut(f"{type(model).__name__} {error}") from None
    except Exception as error:
        line = " ".join(str(error).split())
        raise CannotCut(f"the forward of {type(model).__name__} cannot be traced by torch.fx ({line})") from None
    return graph


def _pick_logits(graph: fx.Graph) -> None:
    """Let a graph that ends by making a dict or an object with `logits` return these alone: they are its outputs."""
    (end,) = (node for node in graph.nodes if node.op == "output")
    given = end.args[0]
    if isinstance(given, fx.Node) and isinstance(given.target, type) and "logits" in given.kwargs:
        end.args = (given.kwargs["logits"],)
        if not given.users:
            graph.erase_node(given)
    elif isinstance(given, Mapping) and "logits" in given:
        end.args = (given["logits"],)


def _context() -> dict[str, Any]:
    """Returns the contexts around an operation that change it, by the names that users know."""
    autocast = {
        "torch.autocast": [
            (kind, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")
        ]
    }
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    attention = torch.backends.cuda
    return {
        "torch.inference_mode": torch.is_inference_mode_enabled(),
        "torch.no_grad or torch.enable_grad": torch.is_grad_enabled(),
        **autocast,
        "torch.utils.checkpoint or saved_tensors_hooks": hooks is not None,
        "another default dtype": torch.get_default_dtype(),
        "another default device": torch.get_default_device(),
        "sdpa_kernel": (
            attention.flash_sdp_enabled(),
            attention.mem_efficient_sdp_enabled(),
            attention.math_sdp_enabled(),
            attention.cudnn_sdp_enabled(),
        ),
        "another precision of matrix products": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "a mode that intercepts operations": (
            torch.overrides._len_torch_function_stack(),  # type: ignore[attr-defined]
            torch.utils._python_dispatch._len_torch_dispatch_stack(),  # type: ignore[attr-defined]
        ),
        "a random seed of its own": torch.default_generator.get_state().numpy().tobytes(),
    }


@contextmanager
def _same_draws() -> Iterator[None]:
    """Restore the random generators that a trace draws from."""
    python, numpy, generator = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(generator)


_FACTORIES = ("zeros", "ones", "full", "empty", "arange", "linspace", "eye", "rand", "randn", "randint", "randperm")


@contextmanager
def _patched(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
    """Make `len(x)` and `torch.zeros(x.size(0))` operations: Python wants an int, which a trace does not have."""

    def length(of: Any) -> Any:
        return of.size(0) if isinstance(of, fx.Proxy) else builtins.len(of)

    scopes = {id(s): s for _, m in modules if (s := getattr(type(m).forward, "__globals__", None)) is not None}
    with ExitStack() as stack:
        for scope in scopes.values():
            if "len" not in scope:
                stack.callback(scope.pop, "len")
                scope["len"] = length
        for name in _FACTORIES:
            original = getattr(torch, name)
            stack.callback(setattr, torch, name, original)
            setattr(torch, name, _operation(original))
        stack.callback(setattr, torch.random, "fork_rng", torch.random.fork_rng)
        torch.random.fork_rng = _refused(torch.random.fork_rng, threading.get_ident())
        yield


def _operation(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def made(*args: Any, **kwargs: Any) -> Any:
        found: list[fx.Proxy] = []
        fx.node.map_aggregate(
            (args, kwargs), lambda value: found.append(value) if isinstance(value, fx.Proxy) else None
        )
        return (
            found[0].tracer.create_proxy("call_function", original, args, kwargs)
            if found
            else original(*args, **kwargs)
        )

    return made


def _refused(original: Callable[..., Any], thread: int) -> Callable[..., Any]:
    @wraps(original)
    def fork(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            raise CannotCut(
                f"it forks the random numbers (torch.random.fork_rng), which a graph does not: {_OWN_MODULE}"
            )
        return original(*args, **kwargs)

    return fork
