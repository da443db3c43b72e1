"""The graph of a network that is divided over devices: its operations, and the shapes of what goes between them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fsl.errors import SplitError
from fsl.models.quiet_tracer import QuietTracer
from fsl.quoting import one_line
from fsl.split.tracer import CannotCut, refuse_dropped

TAKEN = (
    "convolutions, linear layers, BatchNorm, GroupNorm, activations, pools, Flatten and sums, the last layer a Linear"
)
_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


class _LayerTracer(QuietTracer):
    """Takes classes of a user's that are layers of torch as layers, too, so that they can be refused by name."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Returns whether a module is one node."""
        return isinstance(m, _LAYERS) or super().is_leaf_module(m, module_qualified_name)


def traced_graph(model: nn.Module) -> fx.Graph:
    """Returns the graph of a forward, in which layers of torch are nodes; SplitError where there is none."""
    try:
        for name, module in model.named_modules():
            refuse_dropped(name, module)
    except CannotCut as error:
        raise SplitError(f"{type(model).__name__} cannot be divided over devices: {error}") from None
    try:
        return _LayerTracer().trace(model)
    except Exception as error:  # whatever a user's forward raises
        raise SplitError(
            f"{type(model).__name__} cannot be divided over devices: its forward cannot be followed "
            f"({one_line(str(error), 120)}); {TAKEN} can be"
        ) from None


def value_shapes(model: nn.Module, graph: fx.Graph, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Returns each value's shape, of one row."""
    first = next(iter(model.parameters()), None)
    if first is None:
        raise SplitError(f"{type(model).__name__} has no parameters, and nothing to divide")
    found: dict[str, tuple[int, ...]] = {}

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                found[n.name] = tuple(value.shape)
            return value

    try:
        with torch.no_grad():
            Noting(fx.GraphModule(model, graph)).run(
                torch.zeros(1, *input_shape, dtype=first.dtype, device=first.device)
            )
    except Exception as error:  # of torch's layers, for a shape that they do not take
        raise SplitError(
            f"input_shape={input_shape}: {type(model).__name__} does not take it "
            f"({one_line(str(error).partition('While executing')[0], 120)})"
        ) from None
    return found


def ends_of(graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    """Returns the one input, and the layer whose value is the output; SplitError where there are no such."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    last = output.args[0]
    if len(inputs) != 1 or not isinstance(last, fx.Node) or last.op != "call_module" or len(last.users) != 1:
        raise SplitError(f"the network must take one image and end with its last layer; {TAKEN} can be divided")
    return inputs[0], last


def sources_of(node: fx.Node) -> list[fx.Node]:
    """Returns the nodes whose values a node reads."""
    return [one for one in (*node.args, *node.kwargs.values()) if isinstance(one, fx.Node)]


def calling_of(node: fx.Node) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Returns a function from the values by name to what a node without weights makes of them."""
    places = [one.name if isinstance(one, fx.Node) else None for one in node.args]
    given, named = list(node.args), dict(node.kwargs)
    target, method = node.target, node.op == "call_method"

    def run(values: Mapping[str, Tensor]) -> Tensor:
        arguments: list[Any] = [one if name is None else values[name] for one, name in zip(given, places)]
        found = getattr(arguments[0], str(target))(*arguments[1:], **named) if method else target(*arguments, **named)  # type: ignore[operator]
        assert isinstance(found, Tensor)
        return found

    return run


def unsplittable(node: fx.Node, model: nn.Module) -> SplitError:
    """Returns the error for an operation that does not divide, by its name."""
    if node.op == "call_module":
        what = f"layer '{node.target}' is a {type(model.get_submodule(str(node.target))).__name__}, which"
    else:
        what = f"'{getattr(node.target, '__name__', node.target)}' in its forward"
    return SplitError(f"{what} cannot be divided over devices; {TAKEN} can be")
