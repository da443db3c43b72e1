"""Finds how a network divides over devices: which layers read whose maps, and what is exchanged between them.

Each device holds an equal group of the channels of every layer. Normalisations, activations, pools and sums work on a
device's own group. A convolution or linear layer reads groups of other devices, so that maps are exchanged before it:
a block. Layers that read the same maps, as the body and the shortcut of a residual block, are one block: maps go once.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fsl.errors import SplitError
from fsl.quoting import one_line

Weighted = nn.Conv2d | nn.Linear
_BY_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
_LOCAL = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.Identity),
    *(nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten),
)
_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add)
_FUNCTIONS: tuple[Any, ...] = (
    torch.relu,
    F.relu,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    torch.flatten,
    torch.mean,
)
_METHODS = ("relu", "flatten", "contiguous", "mean")
_TAKEN = (
    "convolutions, linear layers, BatchNorm, GroupNorm, activations, pools, Flatten and sums, the last layer a Linear"
)


@dataclass(frozen=True)
class GroupStep:
    """One operation: `value` is what it makes of the values `reads`.

    "layer": a module on the device's own group. "weighted": a module that reads exchanged maps (`block`), or the whole
    image (None). "last": the linear layer whose partial outputs are summed. "function": an operation without weights.
    """

    kind: Literal["layer", "weighted", "last", "function"]
    value: str
    reads: tuple[str, ...]
    layer: str = ""
    block: int | None = None
    call: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    image: bool = False  # its result is of the whole image, and the same on every device
    places: int = 1  # of its output, each of which takes the layer's multiply-adds once


@dataclass(frozen=True)
class Block:
    """Maps that devices exchange: `name` and `readers` are layers that read them, `shape` one device's, of one row."""

    name: str
    readers: tuple[str, ...]
    value: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Values of one device's maps of one row."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class SeparablePlan:
    """How a network divides: its steps in order, the blocks between them, and what goes in and comes out."""

    devices: int
    input_shape: tuple[int, ...]
    outputs: int
    placeholder: str
    steps: tuple[GroupStep, ...]
    blocks: tuple[Block, ...]


def plan_of(model: nn.Module, devices: int, input_shape: Sequence[int]) -> SeparablePlan:
    """Returns how a model of convolutions divides over devices; SplitError, by the layer's name, where it does not.

    `input_shape` is (C, H, W), of one image.
    """
    if devices < 2:
        raise SplitError(f"devices={devices}: there is nothing to divide; give two or more")
    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise SplitError(f"input_shape={shape}: separable networks take images; give (channels, height, width)")
    return _Planner(model, devices, shape).plan()


class _Planner:
    """Walks through the graph of a model once."""

    def __init__(self, model: nn.Module, devices: int, input_shape: tuple[int, ...]) -> None:
        self._model = model
        self._devices = devices
        self._input_shape = input_shape
        self._graph = _traced(model)
        self._shapes = _shapes(model, self._graph, input_shape)
        self._image: set[str] = set()  # values that each device has whole
        self._steps: list[GroupStep] = []
        self._blocks: dict[str, Block] = {}  # by value
        self._called: set[str] = set()

    def plan(self) -> SeparablePlan:
        """Returns the plan of the graph."""
        placeholder, last = _ends(self._graph)
        self._image.add(placeholder.name)
        for node in self._graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            self._steps.append(self._step(node, last))
        if not self._blocks:
            raise SplitError("the network has no layer between the first and the last, and devices exchange nothing")
        return SeparablePlan(
            devices=self._devices,
            input_shape=self._input_shape,
            outputs=self._shapes[last.name][-1],
            placeholder=placeholder.name,
            steps=tuple(self._steps),
            blocks=tuple(self._blocks.values()),
        )

    def _step(self, node: fx.Node, last: fx.Node) -> GroupStep:
        if node.op == "call_module":
            name = str(node.target)
            module = self._model.get_submodule(name)
            if isinstance(module, Weighted):
                return self._weighted(node, name, module, node is last)
            if node is not last and isinstance(module, (*_BY_CHANNEL, *_LOCAL)):
                return self._layer(node, name, module)
        elif node is not last and self._is_local(node):
            return self._function(node)
        raise _unsplittable(node, self._model)

    def _weighted(self, node: fx.Node, name: str, module: Weighted, is_last: bool) -> GroupStep:
        (source,) = _sources(node)
        if name in self._called:
            raise SplitError(
                f"layer '{name}' is called twice, and its gates could not be told apart; make it two layers"
            )
        self._called.add(name)
        image, shape = source.name in self._image, self._shapes[node.name]
        if is_last:
            if image or not isinstance(module, nn.Linear):
                raise SplitError(f"the last layer '{name}' must be a Linear that reads maps; {_TAKEN} can be divided")
            return GroupStep("last", node.name, (source.name,), name)
        self._check_channels(name, shape[1])
        places = math.prod(shape[2:])
        if isinstance(module, nn.Linear) and len(shape) != 2:
            raise SplitError(f"layer '{name}' is a Linear over {len(shape)} dimensions; put a Flatten before it")
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            if image or module.groups % self._devices:
                raise SplitError(
                    f"layer '{name}' has {module.groups} groups, which {self._devices} devices cannot share; give "
                    "groups that the number of devices divides"
                )
            return GroupStep("layer", node.name, (source.name,), name, places=places)
        block = None if image else self._block(source, name)
        return GroupStep("weighted", node.name, (source.name,), name, block, places=places)

    def _block(self, source: fx.Node, name: str) -> int:
        whole = self._shapes[source.name]
        found = self._blocks.get(source.name)
        own = (whole[1] // self._devices, *whole[2:])
        readers = (name,) if found is None else (*found.readers, name)
        self._blocks[source.name] = Block(readers[0], readers, source.name, own)
        return list(self._blocks).index(source.name)

    def _layer(self, node: fx.Node, name: str, module: nn.Module) -> GroupStep:
        (source,) = _sources(node)
        image = source.name in self._image
        if isinstance(module, nn.GroupNorm) and not image and module.num_groups % self._devices:
            raise SplitError(
                f"layer '{name}' normalises {module.num_groups} groups of channels, which {self._devices} devices "
                "cannot share; use BatchNorm, or as many groups as the number of devices divides"
            )
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
            raise _unsplittable(node, self._model)
        if image:
            self._image.add(node.name)
        return GroupStep("layer", node.name, (source.name,), name, image=image)

    def _is_local(self, node: fx.Node) -> bool:
        if node.op == "call_method":
            local = node.target in _METHODS
        else:
            local = node.op == "call_function" and node.target in (*_SUMS, *_FUNCTIONS)
        if not local:
            return False
        if node.target in ("flatten", torch.flatten):
            given = (*node.args[1:], *node.kwargs.values())
            return given in ((1,), (1, -1))
        if node.target in ("mean", torch.mean):
            return self._is_over_places(node)
        if node.target in _SUMS:
            sources = _sources(node)
            alike = {(self._shapes[one.name], one.name in self._image) for one in sources}
            return len(node.args) == 2 and len(sources) == 2 and not node.kwargs and len(alike) == 1
        return len(_sources(node)) == 1

    def _is_over_places(self, node: fx.Node) -> bool:
        """Returns whether a mean is of places alone, and not over rows or channels."""
        (source,) = _sources(node)
        given = [*node.args[1:2], node.kwargs.get("dim")]
        dims = next((one for one in given if one is not None), ())
        listed = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, tuple | list) else []
        rank = len(self._shapes[source.name])
        return bool(listed) and all(isinstance(one, int) and one % rank >= 2 for one in listed)

    def _function(self, node: fx.Node) -> GroupStep:
        sources = _sources(node)
        image = sources[0].name in self._image
        if image:
            self._image.add(node.name)
        return GroupStep("function", node.name, tuple(one.name for one in sources), call=_calling(node), image=image)

    def _check_channels(self, name: str, channels: int) -> None:
        if self._devices > channels:
            raise SplitError(
                f"devices={self._devices}: more groups than the {channels} channels of layer '{name}'; give at most "
                f"{channels}"
            )
        if channels % self._devices:
            raise SplitError(
                f"devices={self._devices}: layer '{name}' has {channels} channels, which so many devices cannot share "
                f"equally; give a number that divides {channels}"
            )


def _traced(model: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(model)
    except Exception as error:  # whatever a user's forward raises
        raise SplitError(
            f"{type(model).__name__} cannot be divided over devices: its forward cannot be followed "
            f"({one_line(str(error), 120)}); {_TAKEN} can be"
        ) from None


def _shapes(model: nn.Module, graph: fx.Graph, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
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


def _ends(graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    """Returns the one input, and the node whose value is the output."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    last = output.args[0]
    if len(inputs) != 1 or not isinstance(last, fx.Node) or last.op != "call_module" or len(last.users) != 1:
        raise SplitError(f"the network must take one image and end with its last layer; {_TAKEN} can be divided")
    return inputs[0], last


def _sources(node: fx.Node) -> list[fx.Node]:
    return [one for one in (*node.args, *node.kwargs.values()) if isinstance(one, fx.Node)]


def _calling(node: fx.Node) -> Callable[[Mapping[str, Tensor]], Tensor]:
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


def _unsplittable(node: fx.Node, model: nn.Module) -> SplitError:
    if node.op == "call_module":
        what = f"layer '{node.target}' is a {type(model.get_submodule(str(node.target))).__name__}, which"
    else:
        what = f"'{getattr(node.target, '__name__', node.target)}' in its forward"
    return SplitError(f"{what} cannot be divided over devices; {_TAKEN} can be")
