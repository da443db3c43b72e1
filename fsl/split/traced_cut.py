"""Cuts modules whose forward is code: traces it by torch.fx, and cuts the graph in two.

It traces through only the root and the ancestors of the cut, and calls every other module as it is, whose code may do
anything. fx writes `self.training` into a graph as a constant, so each part is traced in both modes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, fx, nn

from fsl.segments.calling import Takes
from fsl.split.dividing_graphs import MODULES, divide, reach
from fsl.split.traced_checks import require
from fsl.split.tracer import trace_modes


@dataclass(frozen=True)
class Trace:
    """A model's forward as graphs, one for training and one for evaluation, and the tensors made in forward.

    `exported`: nodes are operations, which say in which modules they were computed, instead of calls of modules.
    """

    graphs: tuple[fx.Graph, fx.Graph]
    constants: Mapping[str, Tensor]
    exported: bool = False

    def inside(self, at: str) -> Callable[[fx.Node], bool]:
        """Returns a function that says whether a node of a graph is a call of the module `at`, or a part of one."""
        if not self.exported:
            return lambda node: node.op == "call_module" and node.target == at
        return lambda node: at in node.meta.get(MODULES, ())


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
        exported: bool = False,
    ):
        super().__init__()
        for name in names:
            _adopt(self, source, name, constants)
        self._graphs = graphs
        self._exported = exported
        self.training = source.training
        inputs = tuple(str(node.target).lstrip("*") for node in graphs[0].nodes if node.op == "placeholder")
        self.takes = Takes(inputs, inputs, False, len(inputs))
        self.model_name = type(source).__name__
        ends = [node.args[0] for graph in graphs for node in graph.nodes if node.op == "output"]
        # One node: a module's or an operation's result, most likely a tensor; several values are a tuple of nodes.
        self.passes_one = all(isinstance(end, fx.Node) and end.op != "call_module" for end in ends)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the graph of the present mode."""
        modes = self.__dict__.get("_modes") or self.compile_graphs()
        return modes[0 if self.training else 1].forward(*inputs, **named)

    def traced_again(self, at: str) -> Trace | None:
        """Returns the trace by which this part is cut again after `at`; None where that is inside of a called module.

        Then it is traced anew. The trace knows what has crossed the cut in front, and may cross the next one too.
        """
        called = all(
            any(node.op == "call_module" and node.target == at for node in graph.nodes) for graph in self._graphs
        )
        return Trace(self._graphs, {}, self._exported) if self._exported or called else None

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


def trace(model: nn.Module, parent: str, trained: Mapping[int, bool], inputs: tuple[str, ...] = ()) -> Trace:
    """Trace a model through the module `parent` and its ancestors, in both modes; leaves the model as found.

    `trained`: by id, a module's mode in training (True where it is missing). `inputs`: the names of those that a
    batch has; none: it is one input.
    """
    for module in model.modules():
        if isinstance(module, Traced):
            module.compile_graphs()  # during fx's trace they would take its proxies for their tensors
    return Trace(*trace_modes(model, parent, trained, inputs))


def cut(model: nn.Module, at: str, traced: Trace) -> tuple[Traced, Traced]:
    """Cut a traced model after the last call of the module `at`; CannotCut says why it is impossible."""
    weights = _weighted(model)
    (train_front, train_back), (eval_front, eval_back) = (
        divide(graph, at, traced.inside(at), weights) for graph in traced.graphs
    )
    front, back = _targets(train_front, eval_front), _targets(train_back, eval_back)
    used_in_front = {id(tensor) for _, tensor in _tensors(model, front)}
    # The back keeps tensors that forward never uses, so that joining gives every key.
    # A tensor's second name goes where the tensor is.
    for name, tensor in _tensors(model, _without(model, front + back)):
        (front if id(tensor) in used_in_front else back).append(name)
    return (
        Traced(model, (train_front, eval_front), front, traced.constants, traced.exported),
        Traced(model, (train_back, eval_back), back, traced.constants, traced.exported),
    )


def _weighted(model: nn.Module) -> frozenset[str]:
    """Returns the names of parameters, and of modules that have some."""
    modules = (name for name, module in model.named_modules() if any(True for _ in module.parameters()))
    return frozenset([*modules, *(name for name, _ in model.named_parameters(remove_duplicate=False))])


def does_nothing(module: nn.Module) -> bool:
    """Returns whether a module returns its input as it is: an Identity, or an empty container."""
    if isinstance(module, Traced):
        return module.does_nothing()
    if type(module).forward is nn.Sequential.forward:
        return all(does_nothing(child) for child in module.children())
    return isinstance(module, nn.Identity)


def _effective(graph: fx.Graph) -> set[fx.Node]:
    """Returns the nodes of a graph without its checks."""
    ends = [n for n in graph.nodes if n.op == "output" or (not n.users and n.target is not require)]
    return reach(ends)


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
