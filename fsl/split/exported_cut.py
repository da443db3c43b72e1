"""Traces a model by `torch.export`, on an example batch, where torch.fx cannot follow the Python of its forward.

The graph has operations instead of calls of modules, and says of each in which module it was computed; so a cut after a
module lies behind its last operation. Sizes stay free: batches may have other rows and lengths than the example.
"""

import logging
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fsl.seeds import DEFAULT_GENERATOR
from fsl.segments.calling import call, picked, takes
from fsl.segments.tensor_places import left_as_found
from fsl.segments.tensor_trees import Values, passed
from fsl.split.dividing_graphs import MODULES
from fsl.split.known_structures import structure_of
from fsl.split.traced_cut import Trace
from fsl.split.tracer import CannotCut

# Rows of the example on which a run traces its model, wherever it does: then one trace, of several seconds, serves all.
EXAMPLE_ROWS = 3
_CHECKS = ("_assert", "sym_constrain", "_guards")  # parts of names of operations that only check


def export(model: nn.Module, example: Values, trained: Mapping[int, bool]) -> Trace:
    """Trace a model in both modes on an example batch; CannotCut, in one line, where it cannot be exported.

    A run cuts several copies of one model, and an export takes seconds: those of the last models are kept.
    """
    structure = structure_of(model, example, trained)
    if structure is None:
        return _export(model, example, trained)
    if structure not in _KNOWN:
        if len(_KNOWN) == _KEPT:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[structure] = _export(model, example, trained)
    return _KNOWN[structure]


_KEPT = 4
_KNOWN: dict[Hashable, Trace] = {}


def _export(model: nn.Module, example: Values, trained: Mapping[int, bool]) -> Trace:
    graphs = []
    constants: dict[str, Tensor] = {}
    with DEFAULT_GENERATOR, torch.random.fork_rng(devices=[]), left_as_found(model):
        before = [(module, module.training) for module in model.modules()]
        try:
            for training in (True, False):
                for module in model.modules():
                    module.training = training and trained.get(id(module), True)
                graph, held = _exported(model, example)
                graphs.append(graph)
                constants |= held
        finally:
            for module, mode in before:
                module.training = mode
    return Trace((graphs[0], graphs[1]), constants, exported=True)


def _exported(model: nn.Module, example: Values) -> tuple[fx.Graph, dict[str, Tensor]]:
    args, kwargs = _arguments(model, example)
    _register(model, example)
    free = {name: _free(value) for name, value in kwargs.items()} or tuple(map(_free, args))
    log = logging.getLogger("torch.export")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, args, kwargs, dynamic_shapes=free, strict=False)
            whole = program.module(check_guards=False)
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise CannotCut(f"the forward of {type(model).__name__} cannot be exported by torch.export ({line})") from None
    finally:
        log.setLevel(level)
    names = {*(n for n, _ in model.named_parameters(remove_duplicate=False)), *(n for n, _ in model.named_buffers())}
    graph = whole.graph
    constants: dict[str, Tensor] = {}
    for node in list(graph.nodes):
        if (node.op == "call_function" and not node.users and any(part in str(node.target) for part in _CHECKS)) or (
            node.op == "call_module" and not node.users
        ):
            graph.erase_node(node)
        elif node.op == "get_attr" and str(node.target) not in names:
            value = _attribute(whole, str(node.target))
            if not isinstance(value, Tensor):
                raise CannotCut(f"the forward of {type(model).__name__} has a part of its own, '{node.target}'")
            constants[str(node.target)] = value.detach()
    for node in list(graph.nodes):
        if node.op == "output":
            _pick_outputs(node, program.call_spec.out_spec, type(model).__name__)
        elif node.op == "call_module":
            raise CannotCut(f"the forward of {type(model).__name__} has a part of its own, '{node.target}'")
    graph.eliminate_dead_code(is_impure_node=_keeps)
    plain = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = plain.node_copy(node, lambda used: copies[used])
        copies[node].meta = {MODULES: _modules_of(node)}
        if node.op == "placeholder":
            copies[node].args = ()
    return plain, constants


def _register(model: nn.Module, example: Values) -> None:
    """Tell torch of the dataclass that a model returns, if it is one of the user's: an export takes it apart."""
    with torch.no_grad():
        given = type(call(model, example))
    if is_dataclass(given) and given not in torch.utils._pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(given)


def _keeps(node: fx.Node) -> bool:
    """Returns whether a node that nobody reads does something: it changes a tensor in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or (schema is not None and schema.is_mutable)


def _arguments(model: nn.Module, example: Values) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = passed(example)
    known = takes(model)
    if isinstance(given, dict) and not set(known.names).isdisjoint(given):
        return (), given
    if type(given) is tuple and 1 < len(given) <= known.in_a_row:
        return given, {}
    return (given,), {}


def _free(value: Any) -> Any:
    """Returns that all sizes of a tensor may change from batch to batch; those of others in their structure."""
    if isinstance(value, Tensor):
        return dict.fromkeys(range(value.dim()), torch.export.Dim.AUTO)
    if isinstance(value, dict):
        return {key: _free(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_free, value))
    return None


def _pick_outputs(node: fx.Node, structure: Any, model: str) -> None:
    """Let the graph return the model's outputs alone, as `picked` would from what the model returns."""
    flat = list(node.args[0]) if isinstance(node.args[0], tuple | list) else [node.args[0]]
    marks = [torch.full((), float(place)) for place in range(len(flat))]
    chosen = picked(torch.utils._pytree.tree_unflatten(marks, structure), model)
    node.args = (flat[int(chosen)],)


def _modules_of(node: fx.Node) -> frozenset[str]:
    stack = node.meta.get("nn_module_stack") or {}
    return frozenset(str(path).partition("@")[0] for path, _ in stack.values())


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found
