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
from fsl.inference.separable.separable_graph import (
    TAKEN,
    calling_of,
    ends_of,
    sources_of,
    traced_graph,
    unsplittable,
    value_shapes,
)

Weighted = nn.Conv2d | nn.Linear
_WEIGHTED = (nn.Conv2d, nn.Linear)
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
        self._graph = traced_graph(model)
        self._shapes = value_shapes(model, self._graph, input_shape)
        self._image: set[str] = set()  # values that each device has whole
        self._steps: list[GroupStep] = []
        self._blocks: dict[str, Block] = {}  # by value
        self._called: set[str] = set()

    def plan(self) -> SeparablePlan:
        """Returns the plan of the graph."""
        placeholder, last = ends_of(self._graph)
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
        if node.name not in self._shapes:
            raise unsplittable(node, self._model)  # it gives no tensor
        if node.op == "call_module":
            name = str(node.target)
            module = self._model.get_submodule(name)
            if type(module) in _WEIGHTED:  # a class of its own may compute otherwise
                assert isinstance(module, Weighted)
                return self._weighted(node, name, module, node is last)
            if node is not last and type(module) in (*_BY_CHANNEL, *_LOCAL):
                return self._layer(node, name, module)
        elif node is not last and self._is_local(node):
            return self._function(node)
        raise unsplittable(node, self._model)

    def _weighted(self, node: fx.Node, name: str, module: Weighted, is_last: bool) -> GroupStep:
        (source,) = sources_of(node)
        if name in self._called:
            raise SplitError(
                f"layer '{name}' is called twice, and its gates could not be told apart; make it two layers"
            )
        self._called.add(name)
        image, shape = source.name in self._image, self._shapes[node.name]
        if is_last:
            if image or not isinstance(module, nn.Linear):
                raise SplitError(f"the last layer '{name}' must be a Linear that reads maps; {TAKEN} can be divided")
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
        (source,) = sources_of(node)
        image = source.name in self._image
        if isinstance(module, nn.GroupNorm) and not image and module.num_groups % self._devices:
            raise SplitError(
                f"layer '{name}' normalises {module.num_groups} groups of channels, which {self._devices} devices "
                "cannot share; use BatchNorm, or as many groups as the number of devices divides"
            )
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
            raise unsplittable(node, self._model)
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
            sources = sources_of(node)
            alike = {(self._shapes[one.name], one.name in self._image) for one in sources}
            return len(node.args) == 2 and len(sources) == 2 and not node.kwargs and len(alike) == 1
        return len(sources_of(node)) == 1

    def _is_over_places(self, node: fx.Node) -> bool:
        """Returns whether a mean is of places alone, and not over rows or channels."""
        (source,) = sources_of(node)
        given = [*node.args[1:2], node.kwargs.get("dim")]
        dims = next((one for one in given if one is not None), ())
        listed = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, tuple | list) else []
        rank = len(self._shapes[source.name])
        return bool(listed) and all(isinstance(one, int) and one % rank >= 2 for one in listed)

    def _function(self, node: fx.Node) -> GroupStep:
        sources = sources_of(node)
        image = sources[0].name in self._image
        if image:
            self._image.add(node.name)
        return GroupStep("function", node.name, tuple(one.name for one in sources), call=calling_of(node), image=image)

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
