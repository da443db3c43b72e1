"""Follows channels through a model: which layers make them, which take them, and which are tied to each other."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from fsl.errors import ConfigError
from fsl.models.quiet_tracer import QuietTracer
from fsl.quoting import one_line

# What gives 0 for a channel of zeros, and keeps channels apart.
_KEEPING = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Dropout,
    nn.Dropout2d, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_KEEPING_CALLS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.tanh, F.dropout, F.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, torch.relu, torch.tanh, "relu", "tanh", "contiguous",
}  # fmt: skip
_ADDING = {operator.add, operator.iadd, torch.add, "add", "add_", operator.mul, operator.imul, torch.mul, "mul"}
_FLAT = {torch.flatten, "flatten"}


@dataclass
class Channels:
    """A model's channels by number: `parents` says which are one, since a sum ties them.

    `made`: by layer, the numbers of its outputs. `taken`: by layer, those of its inputs, with the values of each (more
    than one behind Flatten). `order`: layers as a forward calls them, `calls`: all modules. `kept`: why a channel must
    stay.
    """

    parents: list[int] = field(default_factory=list)
    made: dict[str, list[int]] = field(default_factory=dict)
    taken: dict[str, tuple[list[int], int]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    kept: dict[int, str] = field(default_factory=dict)

    def new(self, count: int) -> list[int]:
        """Returns so many new channels."""
        begin = len(self.parents)
        self.parents += range(begin, begin + count)
        return list(range(begin, begin + count))

    def root(self, channel: int) -> int:
        """Returns the channel that stands for all it is tied to."""
        while self.parents[channel] != channel:
            channel = self.parents[channel]
        return channel

    def tie(self, one: Sequence[int], other: Sequence[int]) -> None:
        """Make channels one, pair by pair."""
        for a, b in zip(one, other, strict=True):
            first, second = sorted((self.root(a), self.root(b)))
            self.parents[second] = first

    def keep(self, channels: Sequence[int], reason: str) -> None:
        """Say that channels must stay."""
        for channel in channels:
            self.kept.setdefault(channel, reason)


@dataclass(frozen=True)
class _Maps:
    """What a tensor has in dimension 1 (or last, of features): channels, each of so many values; None: unknown."""

    channels: list[int] | None
    flat: bool = False


class _OwnBlocks(QuietTracer):
    """Goes into all modules but torch's own, layers derived from those, and layers of this room, which round."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = m.__module__.startswith(("torch.nn", __name__.rpartition(".")[0]))
        return (known and not isinstance(m, nn.Sequential)) or isinstance(m, nn.Conv2d | nn.Linear)


def trace_channels(model: nn.Module) -> Channels:
    """Returns a model's channels; ConfigError for a model that `torch.fx` cannot follow."""
    try:
        graph = _OwnBlocks().trace(model)
    except Exception as error:
        raise ConfigError(
            f"pruned: torch.fx cannot follow {type(model).__name__} ({one_line(str(error), 120)}); prune models whose "
            "forward does not depend on values"
        ) from None
    return _Following(GraphModule(model, graph)).channels


class _Following:
    def __init__(self, traced: GraphModule):
        self.channels = Channels()
        self.modules = dict(traced.named_modules())
        self.maps: dict[Node, _Maps] = {}
        for node in traced.graph.nodes:
            self.maps[node] = self._of(node)

    def _of(self, node: Node) -> _Maps:
        given = [self.maps[one] for one in node.all_input_nodes]
        if node.op in ("placeholder", "get_attr"):
            return _Maps(None)
        if node.op == "output":
            for one in given:
                self._keep(one, "it is an output of the model")
            return _Maps(None)
        if node.op == "call_module":
            self.channels.calls.append(str(node.target))
            return self._of_module(str(node.target), given)
        return self._of_call(node, given)

    def _of_module(self, name: str, given: Sequence[_Maps]) -> _Maps:
        module, inputs = self.modules[name], given[0]
        if isinstance(module, nn.Conv2d | nn.Linear) and type(module) not in (nn.Conv2d, nn.Linear):
            return self._unknown(given, f"{name} is a {type(module).__name__}")
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d) and name in self.channels.taken:
            for maps in (inputs, _Maps(self.channels.made.get(name))):
                self._keep(maps, f"{name} is called twice")
            return _Maps(self.channels.made.get(name), inputs.flat)
        if isinstance(module, nn.Conv2d):
            return self._of_conv(name, module, inputs)
        if isinstance(module, nn.Linear):
            return self._of_linear(name, module, inputs)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and self._take(name, inputs, module.num_features):
            return inputs
        if isinstance(module, _KEEPING):
            return inputs
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return _Maps(inputs.channels, flat=True)
        return self._unknown(given, f"{name} is a {type(module).__name__}")

    def _of_conv(self, name: str, conv: nn.Conv2d, inputs: _Maps) -> _Maps:
        depthwise = conv.groups == conv.in_channels and conv.out_channels % conv.groups == 0
        if conv.groups > 1 and not depthwise:
            self._keep(inputs, f"{name} is a convolution of {conv.groups} groups")
            self.channels.order.append(name)
            self.channels.taken[name] = ([], 1)
            return _Maps(self.channels.made.setdefault(name, self.channels.new(conv.out_channels)))
        if inputs.flat:
            self._keep(inputs, f"{name} takes what is flat")
        if inputs.channels is None or not self._take(name, inputs, conv.in_channels):
            self.channels.taken.setdefault(name, ([], 1))
            if depthwise and conv.groups > 1:
                return self._unknown([inputs], f"{name} is depthwise")
        self.channels.order.append(name)
        if depthwise and conv.groups > 1:
            assert inputs.channels is not None
            times = conv.out_channels // conv.groups
            made = [channel for channel in inputs.channels for _ in range(times)]
        else:
            made = self.channels.new(conv.out_channels)
        self.channels.made[name] = made
        return _Maps(made)

    def _of_linear(self, name: str, linear: nn.Linear, inputs: _Maps) -> _Maps:
        known = inputs.channels is None or inputs.flat
        if not known:
            self._keep(inputs, f"{name} takes their last dimension")
        if inputs.channels is None or not known or not self._take(name, inputs, linear.in_features):
            self.channels.taken.setdefault(name, ([], 1))
        self.channels.order.append(name)
        self.channels.made[name] = self.channels.new(linear.out_features)
        return _Maps(self.channels.made[name], flat=True)

    def _of_call(self, node: Node, given: Sequence[_Maps]) -> _Maps:
        call: Callable[..., Any] | str = node.target
        first = given[0] if given else _Maps(None)
        if call in _KEEPING_CALLS:
            return first
        if call in _FLAT and (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1)):
            return _Maps(first.channels, flat=True)
        lists = [one.channels for one in given]
        if call in _ADDING and len(given) == 2 and given[0].flat == given[1].flat:
            one, other = lists
            if one is not None and other is not None and len(one) == len(other):
                self.channels.tie(one, other)
                return first
        parts = self._joined(node) if call in (torch.cat, "cat") else None
        if parts is not None and all(self.maps[part].channels is not None for part in parts):
            return _Maps([channel for part in parts for channel in self.maps[part].channels or ()], first.flat)
        return self._unknown(given, f"forward calls {getattr(call, '__name__', call)}")

    def _joined(self, node: Node) -> list[Node] | None:
        """Returns what is joined channel by channel; None where it is joined in another way."""
        parts = node.args[0] if node.args else None
        if not isinstance(parts, list | tuple) or (*node.args[1:], *node.kwargs.values()) != (1,):
            return None
        nodes = [part for part in parts if isinstance(part, Node)]
        return nodes if len(nodes) == len(parts) else None

    def _take(self, name: str, inputs: _Maps, size: int) -> bool:
        """Note what a layer takes; False where that is not known."""
        if inputs.channels is None or not inputs.channels or size % len(inputs.channels):
            self._keep(inputs, f"{name} takes them in a way that is not known")
            return False
        values = size // len(inputs.channels)
        if values > 1 and not inputs.flat:
            self._keep(inputs, f"{name} takes them in a way that is not known")
            return False
        self.channels.taken[name] = (inputs.channels, values)
        return True

    def _unknown(self, given: Sequence[_Maps], reason: str) -> _Maps:
        for one in given:
            self._keep(one, reason)
        return _Maps(None)

    def _keep(self, maps: _Maps, reason: str) -> None:
        self.channels.keep(maps.channels or (), reason)
