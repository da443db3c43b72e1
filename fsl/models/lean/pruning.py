"""Removes channels of a model's front: the layers become smaller, and compute less."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, one_of
from fsl.models.lean.channel_trace import Channels, trace_channels

Ranking = Literal["l1", "bn_scale"]


@dataclass(frozen=True)
class ChannelGroup:
    """Layers of which the outputs are one, as those that a skip connection adds, with how many of them are removed."""

    layers: tuple[str, ...]
    channels: int
    removed: int


@dataclass(frozen=True)
class PruningPlan:
    """What pruning removes: `groups` of tied layers, `left` (layer, why) of the front, and what stays of each layer.

    `outputs` and `inputs`: by layer, the numbers of the outputs and inputs that stay, where some go.
    """

    groups: tuple[ChannelGroup, ...]
    left: tuple[tuple[str, str], ...]
    outputs: dict[str, list[int]]
    inputs: dict[str, list[int]]

    def in_words(self) -> str:
        """Returns a line for each group and each layer that is left alone."""
        lines = [f"{' + '.join(one.layers)}: {one.removed} of {one.channels} channels go" for one in self.groups]
        return "\n".join([*lines, *(f"{name}: left alone, since {reason}" for name, reason in self.left)])


@checks_types()
def plan_pruning(model: nn.Module, share: float, until: str | None = None, by: Ranking = "l1") -> PruningPlan:
    """Returns what `pruned` would remove of a model; ConfigError, in one line, as there."""
    if not 0 <= share < 1:
        raise ConfigError(f"share={share}: it must be in [0, 1), a share of the channels of each layer that go")
    one_of("by", by, ("l1", "bn_scale"))
    channels = trace_channels(model)
    front = _front(model, channels, until)
    groups, left = _groups(channels, front)
    if not groups:
        told = "; ".join(f"{name}: {reason}" for name, reason in left[:3])
        told = told or "there is no convolution and no linear layer of torch's own"
        raise ConfigError(f"pruned: nothing up to until={until!r} can be pruned: {told}")
    gone: set[int] = set()
    found = []
    for layers, roots in groups.items():
        count = min(len(roots) - 1, math.floor(share * len(roots) + 1e-9))
        scores = _scores(model, channels, layers, roots, by)
        gone |= {roots[place] for place in sorted(range(len(roots)), key=lambda at: (scores[at], at))[:count]}
        found.append(ChannelGroup(layers, len(roots), count))
    made = {name: (numbers, 1) for name, numbers in channels.made.items()}
    outputs, inputs = (_staying(channels, sides, gone) for sides in (made, channels.taken))
    return PruningPlan(tuple(found), tuple(left), outputs, inputs)


@checks_types()
def pruned(model: nn.Module, share: float, until: str | None = None, by: Ranking = "l1") -> nn.Module:
    """Returns a copy of a model without a share of the channels of each layer up to the end of the module `until`.

    Convolutions and linear layers lose outputs, what follows them (normalisation, depthwise convolutions, the next
    layer, also behind `until`) the inputs: the model is of the same modules, smaller. Channels that a skip connection
    adds, or a product multiplies, are one: they go together, or stay where one of their layers is behind `until`.
    `plan_pruning` says what goes and what is left alone, and why. At least one channel stays; share 0 changes nothing.

    `by`: what goes first: "l1", the smallest sum of absolute weights (Li et al. 2017, arXiv 1608.08710); "bn_scale",
    the smallest factor of the batch normalisation behind (Liu et al. 2017, arXiv 1708.06519). What is removed counts as
    zero behind normalisation and activation: `zeroed` computes the same as `pruned`.

    For models that `torch.fx` can follow. ConfigError for a share outside of [0, 1), unknown names, and where no layer
    up to `until` can be pruned.
    """
    plan = plan_pruning(model, share, until, by)
    made = copy.deepcopy(model)
    for name, stay in plan.outputs.items():
        _cut_outputs(made.get_submodule(name), stay)
    for name, stay in plan.inputs.items():
        _cut_inputs(made.get_submodule(name), stay)
    return made


@checks_types()
def zeroed(model: nn.Module, share: float, until: str | None = None, by: Ranking = "l1") -> nn.Module:
    """Returns a copy of a model of the same size, in which what `pruned` removes is zero, also behind normalisation."""
    plan = plan_pruning(model, share, until, by)
    made = copy.deepcopy(model)
    for name in (*plan.outputs, *plan.inputs):
        layer = made.get_submodule(name)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            _zero(layer, plan.inputs[name])
        elif name in plan.outputs:
            _zero(layer, plan.outputs[name])
    return made


def _front(model: nn.Module, channels: Channels, until: str | None) -> set[str]:
    """Returns what is called up to the end of the module `until`."""
    if until is None:
        return set(channels.order)
    ends = [n for n, name in enumerate(channels.calls, 1) if name == until or name.startswith(f"{until}.")]
    if not ends:
        known = ", ".join(name for name, _ in model.named_children())
        raise ConfigError(f"until={until!r}: the model calls no such module; there are {known}")
    return set(channels.calls[: ends[-1]])


def _groups(channels: Channels, front: set[str]) -> tuple[dict[tuple[str, ...], list[int]], list[tuple[str, str]]]:
    """Returns the channels that may go by the layers that make them, and the front's layers that are left alone."""
    makers: dict[int, list[str]] = {}
    depthwise: set[str] = set()
    for name in channels.order:
        made, taken = channels.made[name], set(channels.taken[name][0])
        if made and taken.issuperset(made):
            depthwise.add(name)
        for channel in made:
            known = makers.setdefault(channels.root(channel), [])
            if name not in known:
                known.append(name)
    reasons = {channels.root(channel): reason for channel, reason in channels.kept.items()}
    groups: dict[tuple[str, ...], list[int]] = {}
    left: dict[str, str] = {}
    for root, all_makers in makers.items():
        layers = tuple(name for name in all_makers if name not in depthwise)
        if not any(name in front for name in layers):
            continue
        behind = [name for name in layers if name not in front]
        reason = reasons.get(root)
        if reason is None and behind:
            reason = f"a skip connection ties it to {behind[0]}, which is behind until"
        if reason is None:
            groups.setdefault(layers, []).append(root)
        else:
            left |= {name: reason for name in layers if name in front and name not in left}
    return groups, list(left.items())


def _scores(
    model: nn.Module, channels: Channels, layers: Sequence[str], roots: Sequence[int], by: Ranking
) -> list[float]:
    """Returns how much each channel counts, over all layers that make it."""
    found = dict.fromkeys(roots, 0.0)
    if by == "l1":
        rows = [(channels.made[name], model.get_submodule(name).weight) for name in layers]
    else:
        norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        }
        rows = [
            (channels.taken[name][0], norm.weight)
            for name, norm in norms.items()
            if name in channels.taken and norm.weight is not None and _meet(channels, channels.taken[name][0], found)
        ]
        if not rows:
            raise ConfigError(f"by=bn_scale: no batch normalisation stands behind {layers[0]}; use by=l1")
    for numbers, weight in rows:
        assert isinstance(weight, Tensor)
        sums = weight.detach().abs().flatten(1).sum(1) if weight.dim() > 1 else weight.detach().abs()
        for channel, score in zip(numbers, sums.tolist(), strict=False):
            root = channels.root(channel)
            if root in found:
                found[root] += score
    return [found[root] for root in roots]


def _meet(channels: Channels, numbers: Sequence[int], roots: dict[int, float]) -> bool:
    return any(channels.root(number) in roots for number in numbers)


def _staying(channels: Channels, sides: Mapping[str, tuple[list[int], int]], gone: set[int]) -> dict[str, list[int]]:
    """Returns the places that stay of each layer's channels, each of so many values; of layers where some go."""
    found: dict[str, list[int]] = {}
    for name, (numbers, values) in sides.items():
        stay = [place for place, number in enumerate(numbers) if channels.root(number) not in gone]
        if len(stay) < len(numbers):
            found[name] = [place * values + value for place in stay for value in range(values)]
    return found


def _cut_outputs(layer: nn.Module, stay: Sequence[int]) -> None:
    _select(layer, ("weight", "bias"), stay, 0)
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = len(stay)
    else:
        layer.out_features = len(stay)  # type: ignore[assignment]


def _cut_inputs(layer: nn.Module, stay: Sequence[int]) -> None:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:  # depthwise: its filters have gone with its outputs
        layer.in_channels = layer.groups = len(stay)
    elif isinstance(layer, nn.Conv2d):
        _select(layer, ("weight",), stay, 1)
        layer.in_channels = len(stay)
    elif isinstance(layer, nn.Linear):
        _select(layer, ("weight",), stay, 1)
        layer.in_features = len(stay)
    else:
        _select(layer, ("weight", "bias", "running_mean", "running_var"), stay, 0)
        layer.num_features = len(stay)  # type: ignore[assignment]


def _select(layer: nn.Module, names: Sequence[str], stay: Sequence[int], dim: int) -> None:
    for name in names:
        given = getattr(layer, name, None)
        if not isinstance(given, Tensor):
            continue
        kept = given.detach().index_select(dim, torch.tensor(stay, device=given.device)).clone()
        if isinstance(given, nn.Parameter):
            setattr(layer, name, nn.Parameter(kept, requires_grad=given.requires_grad))
        else:
            setattr(layer, name, kept)


def _zero(layer: nn.Module, stay: Sequence[int]) -> None:
    with torch.no_grad():
        for name in ("weight", "bias"):
            given = getattr(layer, name, None)
            if isinstance(given, Tensor):
                gone = torch.ones(len(given), dtype=torch.bool)
                gone[list(stay)] = False
                given[gone] = 0
