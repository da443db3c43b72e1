"""Cuts modules whose forward is code: traces it by torch.fx, and cuts the graph in two.

It traces through only the root and the ancestors of the cut, and calls every other module as it is, whose code may do
anything. fx writes `self.training` into a graph as a constant, so each part is traced in both modes.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from fsl.errors import SplitError
from fsl.split.traced_checks import recorded, require
from fsl.split.tracer import CannotCut, trace_modes


@dataclass(frozen=True)
class Trace:
    """A model's forward as graphs, one for training and one for evaluation, and the tensors made in forward."""

    graphs: tuple[fx.Graph, fx.Graph]
    constants: Mapping[str, Tensor]


class Traced(nn.Module):
    """A part of a traced model: a graph for training and one for evaluation, over the same tensors and modules.

    It takes and returns what the original forward has at its ends and at the cut; copy and pickle work as usual.
    """

    def __init__(
        self,
        source: nn.Module,
        graphs: tuple[fx.Graph, fx.Graph],
        names: Iterable[str],
        constants: Mapping[str, Tensor],
    ):
        super().__init__()
        for name in names:
            _adopt(self, source, name, constants)
        self._graphs = graphs
        self.training = source.training

    def forward(self, inputs: Any) -> Any:
        """Run the graph of the present mode."""
        modes = self.__dict__.get("_modes") or self.compile_graphs()
        return modes[0 if self.training else 1].forward(inputs)

    def does_nothing(self) -> bool:
        """True where the part computes nothing between its ends."""
        nodes = [node for graph in self._graphs for node in _effective(graph) if node.op.startswith("call")]
        return all(n.op == "call_module" and does_nothing(self.get_submodule(str(n.target))) for n in nodes)

    def compile_graphs(self) -> tuple[fx.GraphModule, ...]:
        """Compile the graphs, which otherwise the first forward does."""
        modes = tuple(fx.GraphModule(self, graph) for graph in self._graphs)
        for mode in modes:
            # Both graphs read this module's own tables, so that both see tensors that are swapped in here.
            mode._parameters, mode._buffers, mode._modules = self._parameters, self._buffers, self._modules
        self.__dict__["_modes"] = modes  # past nn.Module's registration: views of this module, not its children
        return modes

    def __getstate__(self) -> dict[str, Any]:
        # A copy compiles its own graphs, since these read this module's tables.
        return {key: value for key, value in self.__dict__.items() if key != "_modes"}


def trace(model: nn.Module, parent: str, trained: Mapping[int, bool]) -> Trace:
    """Trace a model through the module `parent` and its ancestors, in both modes; leaves the model as found.

    `trained`: by id, a module's mode in training (True where it is missing).
    """
    for module in model.modules():
        if isinstance(module, Traced):
            module.compile_graphs()  # during fx's trace they would take its proxies for their tensors
    return Trace(*trace_modes(model, parent, trained))


def cut(model: nn.Module, at: str, traced: Trace) -> tuple[Traced, Traced]:
    """Cut a traced model after the last call of the module `at`; CannotCut says why it is impossible."""
    (train_front, train_back), (eval_front, eval_back) = (_divide(graph, at) for graph in traced.graphs)
    front, back = _targets(train_front, eval_front), _targets(train_back, eval_back)
    used_in_front = {id(tensor) for _, tensor in _tensors(model, front)}
    # The back keeps tensors that forward never uses, so that joining gives every key.
    # A tensor's second name goes where the tensor is.
    for name, tensor in _tensors(model, _without(model, front + back)):
        (front if id(tensor) in used_in_front else back).append(name)
    return (
        Traced(model, (train_front, eval_front), front, traced.constants),
        Traced(model, (train_back, eval_back), back, traced.constants),
    )


def does_nothing(module: nn.Module) -> bool:
    """Returns whether a module returns its input as it is: an Identity, or an empty container."""
    if isinstance(module, Traced):
        return module.does_nothing()
    if type(module).forward is nn.Sequential.forward:
        return all(does_nothing(child) for child in module.children())
    return isinstance(module, nn.Identity)


def _divide(graph: fx.Graph, at: str) -> tuple[fx.Graph, fx.Graph]:
    nodes = list(graph.nodes)
    calls = [node for node in nodes if node.op == "call_module" and node.target == at]
    if not calls:
        raise CannotCut(f"forward does not call '{at}'")
    boundary = calls[-1]
    if any(user.target is operator.getitem and isinstance(user.args[1], int) for user in boundary.users):
        raise CannotCut(f"'{at}' returns several values")
    if asked := next(filter(None, map(_no_tensors, boundary.users)), None):
        raise CannotCut(f"'{at}' returns no tensor ({asked} of it is used), and a cut needs one tensor")
    before = _before(nodes, boundary)
    front, back = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node in before:
            _refuse_crossing(node, copies, at)
            copies[node] = front.node_copy(node, lambda n: copies[n])
    smashed = back.placeholder("smashed")
    behind, checked = {boundary: smashed}, []
    for node in nodes:
        if node in before:
            continue
        if (_asked(node) or _is_shape(node)) and node.all_input_nodes[0] in before - {boundary}:
            copies[node] = front.node_copy(node, lambda n: copies[n])  # the front answers a later question
            before.add(node)
            continue
        for needed in node.all_input_nodes:
            if needed in behind:
                continue
            if needed.op == "get_attr":
                behind[needed] = back.node_copy(needed)
            elif needed in before and (asked := _asked(needed)) is not None:  # smashed data give the same answer
                behind[needed] = back.call_function(_ANSWERS[asked], (smashed,))
                checked.append((asked, copies[needed]))
        _refuse_crossing(node, behind, at)
        behind[node] = back.node_copy(node, lambda n: behind[n])
    kept = copies[boundary]
    for asked in ("rows", "dtype"):
        if values := [value for kind, value in checked if kind == asked]:
            kept = front.call_function(with_same, (kept, at, asked, *values))
    front.output(kept)
    return front, back


@recorded
def rows_of(smashed: Tensor) -> int:
    """Returns the number of rows of a batch."""
    return smashed.shape[0]


@recorded
def dtype_of(smashed: Tensor) -> torch.dtype:
    """Returns the dtype of smashed data."""
    return smashed.dtype


@recorded
def device_of(smashed: Tensor) -> torch.device:
    """Returns the torch device on which the back computes."""
    return smashed.device


_ANSWERS: dict[str, Callable[..., Any]] = {"rows": rows_of, "dtype": dtype_of, "device": device_of}


@recorded
def with_same(smashed: Tensor, at: str, asked: str, *values: Any) -> Tensor:
    """Returns smashed data as they are; SplitError where the back expects other rows or another dtype."""
    has = _ANSWERS[asked](smashed)
    for value in values:
        if value != has:
            raise SplitError(
                f"cut={at!r}: what is behind the cut needs the {asked} of a tensor in front of it, {value}, and the "
                f"front's output has {has}; cut where they are the same"
            )
    return smashed


def _asked(node: fx.Node) -> str | None:
    """Returns the question of a node that smashed data can answer: `x.size(0)`, `x.shape[0]`, `x.dtype`, `x.device`."""
    if node.op == "call_method" and node.target == "size":
        return "rows" if (*node.args[1:], *node.kwargs.values()) == (0,) else None
    if node.target is getattr and node.args[1] in ("dtype", "device"):
        return str(node.args[1])
    return "rows" if node.target is operator.getitem and node.args[1] == 0 and _is_shape(node.args[0]) else None


def _no_tensors(node: fx.Node) -> str | None:
    """Returns the field, key or method that a node asks of its first argument, and that no tensor has."""
    if node.target is operator.getitem and isinstance(node.args[1], str):
        return f"[{node.args[1]!r}]"
    name = node.args[1] if node.target is getattr else node.target if node.op == "call_method" else None
    return f".{name}" if isinstance(name, str) and not hasattr(Tensor, name) else None


def _is_shape(value: Any) -> bool:
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method" and value.target == "size":
        return len(value.args) == 1 and not value.kwargs
    return value.target is getattr and value.args[1:] == ("shape",)


def _before(nodes: list[fx.Node], boundary: fx.Node) -> set[fx.Node]:
    """Returns the nodes of the front: what the cut module needs, and earlier nodes that give nothing to the back.

    Nodes before the cut that only serve the back (an early positional embedding) go to the back; nodes that nobody
    reads (an in-place operation whose result is dropped) stay with what they work on.
    """
    position = nodes.index(boundary)
    before = _reach([boundary])
    for_the_back = _reach(nodes[position + 1 :], stop=before, through=lambda node: _asked(node) is None)
    for node in nodes[:position]:
        if node.op == "placeholder" or (
            node not in for_the_back and not any(n in for_the_back and n not in before for n in node.all_input_nodes)
        ):
            before.add(node)
        elif node not in before:
            for_the_back.add(node)
    return before


def _reach(
    nodes: Iterable[fx.Node], stop: Iterable[fx.Node] = (), through: Callable[[fx.Node], bool] = lambda node: True
) -> set[fx.Node]:
    """Returns these nodes and all that they depend on, up to the nodes `stop`, and only by way of those `through`."""
    found, borders = set(nodes), set(stop)
    open_nodes = list(found)
    while open_nodes:
        for needed in open_nodes.pop().all_input_nodes:
            if needed not in found and needed not in borders and through(needed):
                found.add(needed)
                open_nodes.append(needed)
    return found


def _refuse_crossing(node: fx.Node, there: Mapping[fx.Node, fx.Node], at: str) -> None:
    for needed in node.all_input_nodes:
        if needed not in there:
            while _is_shape(needed) or (needed.target is operator.getitem and _is_shape(needed.args[0])):
                needed = needed.all_input_nodes[0]  # the tensor whose shape it is
            called = needed.target if needed.op == "call_module" else needed.name
            what = "the model's input" if needed.op == "placeholder" else f"the result of '{called}'"
            raise CannotCut(f"{what} is needed behind '{at}', and only the output of '{at}' may cross")


def _effective(graph: fx.Graph) -> set[fx.Node]:
    """Returns the nodes of a graph without its checks."""
    ends = [n for n in graph.nodes if n.op == "output" or (not n.users and n.target is not require)]
    return _reach(ends)


def _targets(*graphs: fx.Graph) -> list[str]:
    nodes = (node for graph in graphs for node in graph.nodes)
    return list(dict.fromkeys(str(node.target) for node in nodes if node.op in ("call_module", "get_attr")))


def _tensors(model: nn.Module, names: Iterable[str]) -> list[tuple[str, Tensor]]:
    """Returns the parameters and buffers with one of these names, or in a module of such a name."""
    prefixes = tuple(f"{name}." for name in names)
    return [(name, tensor) for name, tensor in _named(model) if f"{name}.".startswith(prefixes)]


def _without(model: nn.Module, names: Iterable[str]) -> list[str]:
    prefixes = tuple(f"{name}." for name in names)
    return [name for name, _ in _named(model) if not f"{name}.".startswith(prefixes)]


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    parameters = model.named_parameters(remove_duplicate=False)
    return chain(parameters, model.named_buffers(remove_duplicate=False))


def _adopt(into: nn.Module, source: nn.Module, name: str, constants: Mapping[str, Tensor]) -> None:
    """Put a module, parameter or buffer of `source` under the same name into a part; plain tensors become buffers."""
    *path, last = name.split(".")
    for step in path:
        if step not in into._modules:
            into._modules[step] = nn.Module()
        into, source = into._modules[step], source._modules[step]  # type: ignore[assignment]
    tables = ("_parameters", "_buffers", "_modules")
    holding = [table for table in tables if last in source.__dict__[table]]
    for table in holding:
        into.__dict__[table][last] = source.__dict__[table][last]
    if not holding:
        into.register_buffer(last, constants[name] if name in constants else getattr(source, last), persistent=False)
    elif last in source._non_persistent_buffers_set:
        into._non_persistent_buffers_set.add(last)
