"""Cutting modules whose forward is code: torch.fx traces it, and the graph is cut in two.

Only the root and the ancestors of the cut are traced through; every other module is called as it is, so its own
code may do what it likes. fx writes `self.training` into a graph as a constant, so each part is traced in both modes.
"""

import copy
import operator
from collections.abc import Iterable
from typing import Any

from torch import fx, nn


class CannotCut(Exception):  # noqa: N818 - it is caught and told as a SplitError
    """Why a model cannot be cut there."""


class Traced(nn.Module):
    """A part of a traced model: a graph for training and one for evaluation, over the same tensors and modules."""

    def __init__(self, source: nn.Module, graphs: tuple[fx.Graph, fx.Graph], names: Iterable[str]):
        super().__init__()
        for name in names:
            _adopt(self, source, name)
        modes = tuple(fx.GraphModule(self, graph) for graph in graphs)
        for mode in modes:
            # They read the tables of this very module, so that tensors swapped in here are seen by both.
            mode._parameters, mode._buffers, mode._modules = self._parameters, self._buffers, self._modules
        self.__dict__["_modes"] = modes  # past nn.Module's registration: views of this module, not its children
        self._names = tuple(names)
        self.training = source.training

    def forward(self, inputs: Any) -> Any:
        """Run the graph of the present mode."""
        return self.__dict__["_modes"][0 if self.training else 1].forward(inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Traced":
        tables = nn.Module()
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            tables.__dict__[table] = copy.deepcopy(self.__dict__[table], memo)
        tables.training = self.training
        train, evaluate = (copy.deepcopy(mode.graph) for mode in self.__dict__["_modes"])
        copied = Traced(tables, (train, evaluate), self._names)
        memo[id(self)] = copied
        return copied


def cut(model: nn.Module, at: str) -> tuple[Traced, Traced]:
    """The two parts of a model cut after the last call of the module `at`; CannotCut says why it cannot be."""
    modes = [(module, module.training) for module in model.modules()]
    halves = []
    try:
        for training in (True, False):
            model.train(training)
            halves.append(_divide(_trace(model, at), at))
    finally:
        for module, training in modes:
            module.training = training
    (train_front, train_back), (eval_front, eval_back) = halves
    front, back = _targets(train_front, eval_front), _targets(train_back, eval_back)
    # What forward never uses belongs to the model all the same: the back keeps it, so that joining gives every key.
    unused = [n for n in model.state_dict() if not any(f"{n}.".startswith(f"{used}.") for used in front + back)]
    return Traced(model, (train_front, eval_front), front), Traced(model, (train_back, eval_back), back + unused)


def possible_cuts(model: nn.Module) -> list[str]:
    """The modules after which a model can be cut, in order; CannotCut where its forward cannot be traced at all."""
    _trace(model, "")
    names = []
    for name, _ in model.named_modules():
        try:
            if name:
                _divide(_trace(model, name), name)
                names.append(name)
        except CannotCut:
            continue
    return names


class _Tracer(fx.Tracer):
    def __init__(self, at: str):
        super().__init__()
        self._at = at

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self._at.startswith(f"{module_qualified_name}.")


def _trace(model: nn.Module, at: str) -> fx.Graph:
    try:
        graph = _Tracer(at).trace(model)
    except Exception as error:
        line = " ".join(str(error).split())
        raise CannotCut(f"the forward of {type(model).__name__} cannot be traced by torch.fx ({line})") from None
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise CannotCut(f"{type(model).__name__} takes several inputs, and a segment takes one")
    return graph


def _divide(graph: fx.Graph, at: str) -> tuple[fx.Graph, fx.Graph]:
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == at]
    if not calls:
        raise CannotCut(f"forward does not call '{at}'")
    boundary = calls[-1]
    if any(user.target is operator.getitem for user in boundary.users):
        raise CannotCut(f"'{at}' returns several values")
    before = _ancestors(boundary)
    front, back = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in before or node.op == "placeholder":
            copies[node] = front.node_copy(node, lambda n: copies[n])
    front.output(copies[boundary])
    behind = {boundary: back.placeholder("smashed")}
    computes = False
    for node in graph.nodes:
        if node in before or node.op == "placeholder":
            continue
        for needed in node.all_input_nodes:
            if needed in behind:
                continue
            if needed.op != "get_attr":
                raise CannotCut(f"'{needed.name}' is computed before '{at}' and needed behind it")
            behind[needed] = back.node_copy(needed)
        computes = computes or node.op.startswith("call")
        behind[node] = back.node_copy(node, lambda n: behind[n])
    if not computes:
        raise CannotCut(f"there is nothing behind '{at}'")
    return front, back


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, open_nodes = {node}, [node]
    while open_nodes:
        for needed in open_nodes.pop().all_input_nodes:
            if needed not in found:
                found.add(needed)
                open_nodes.append(needed)
    return found


def _targets(*graphs: fx.Graph) -> list[str]:
    nodes = (node for graph in graphs for node in graph.nodes)
    return list(dict.fromkeys(str(node.target) for node in nodes if node.op in ("call_module", "get_attr")))


def _adopt(into: nn.Module, source: nn.Module, name: str) -> None:
    *path, last = name.split(".")
    for step in path:
        if step not in into._modules:
            into._modules[step] = nn.Module()
        into, source = into._modules[step], source._modules[step]  # type: ignore[assignment]
    for table in ("_parameters", "_buffers", "_modules"):
        if last in source.__dict__[table]:
            into.__dict__[table][last] = source.__dict__[table][last]
    if last in source._non_persistent_buffers_set:
        into._non_persistent_buffers_set.add(last)
