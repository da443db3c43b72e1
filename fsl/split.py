"""Cut a model into segments, and join the segments' states again."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fsl import tracing
from fsl.errors import SplitError

Place = Literal["device", "edge"]

# By number of cuts: the segments' names and places. The tail is on the device again, so that labels stay there.
_PLACES: dict[int, tuple[tuple[str, Place], ...]] = {
    1: (("front", "device"), ("back", "edge")),
    2: (("front", "device"), ("back", "edge"), ("tail", "device")),
}


@dataclass(frozen=True)
class Segment:
    """A part of a split model and where it runs; its state_dict has the unsplit model's keys."""

    name: str
    place: Place
    module: nn.Module


@dataclass(frozen=True)
class SplitModel:
    """A model as an ordered list of segments. `cuts` names the last module before each boundary."""

    segments: tuple[Segment, ...]
    cuts: tuple[str, ...]

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __getitem__(self, name: str) -> nn.Module:
        return next(segment.module for segment in self.segments if segment.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """The segments' names in order."""
        return tuple(segment.name for segment in self.segments)


def split(model: nn.Module, at: str | Sequence[str] | None = None) -> SplitModel:
    """Cut a model after the modules named `at`; segments share the model's parameters and buffers.

    Works for any module whose children run in sequence and for skip connections that do not cross a cut. One cut
    gives front and back, two give front, back and tail (U-shaped). `at=None` takes the model's `default_cut`.
    Raises SplitError with the list of possible cuts.
    """
    if at is None:
        at = getattr(model, "default_cut", None)
        if at is None:
            raise SplitError(f"{type(model).__name__} has no default cut; {_choices(model)}")
    cuts = (at,) if isinstance(at, str) else tuple(at)
    if len(cuts) not in _PLACES:
        raise SplitError(f"cut={list(cuts)}: one cut (front, back) or two (front, back, tail) can be made")
    parts = []
    rest = model
    for cut in cuts:
        part, rest = _cut(rest, cut, model)
        parts.append(part)
    parts.append(rest)
    _refuse_shared(parts, cuts)
    return SplitModel(tuple(Segment(name, place, part) for (name, place), part in zip(_PLACES[len(cuts)], parts)), cuts)


def join(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The unsplit model's state_dict from its segments' states, in order of the segments."""
    whole: dict[str, Tensor] = {}
    for segment, state in states.items():
        for key, tensor in state.items():
            if key in whole and not torch.equal(whole[key], tensor):
                raise SplitError(f"segment '{segment}' has '{key}', which an earlier segment has with other values")
            whole[key] = tensor
    return whole


def possible_cuts(model: nn.Module) -> list[str]:
    """The names of the modules after which the model can be cut, in order."""
    if isinstance(model, nn.Sequential):
        return _sequential_cuts(model)
    return tracing.possible_cuts(model)


def _cut(model: nn.Module, at: str, whole: nn.Module) -> tuple[nn.Module, nn.Module]:
    if not at or at not in dict(whole.named_modules()):
        raise SplitError(f"cut={at!r}: {type(whole).__name__} has no module of that name; {_choices(whole)}")
    if _in_sequentials(model, at):
        halves = _slice(model, at.split("."))
    else:
        try:
            halves = tracing.cut(model, at)
        except tracing.CannotCut as error:
            raise SplitError(f"cut={at!r} cannot be made: {error}; {_choices(whole)}") from None
    if not isinstance(halves[1], tracing.Traced) and not halves[1]._modules:
        raise SplitError(f"cut={at!r} leaves nothing behind it; {_choices(whole)}")
    return halves


def _choices(model: nn.Module) -> str:
    try:
        names = possible_cuts(model)
    except tracing.CannotCut as error:
        return f"it cannot be cut anywhere: {error}"
    return f"possible cuts: {', '.join(names)}" if names else "it cannot be cut anywhere"


def _refuse_shared(parts: Sequence[nn.Module], cuts: Sequence[str]) -> None:
    seen: dict[int, tuple[int, str]] = {}
    for index, part in enumerate(parts):
        for name, tensor in part.state_dict(keep_vars=True).items():
            owner, first = seen.setdefault(id(tensor), (index, name))
            if owner != index:
                raise SplitError(
                    f"cut={list(cuts)}: '{first}' and '{name}' are one tensor on both sides of a cut, which cannot be "
                    "trained in two places; untie them, or cut elsewhere"
                )


def _in_sequentials(model: nn.Module, at: str) -> bool:
    owner: nn.Module = model
    for name in at.split("."):
        if type(owner).forward is not nn.Sequential.forward or name not in owner._modules:
            return False
        owner = owner._modules[name]  # type: ignore[assignment]
    return True


def _slice(model: nn.Module, path: list[str]) -> tuple[nn.Module, nn.Module]:
    names = list(model._modules)
    index = names.index(path[0])
    children = OrderedDict((name, model._modules[name]) for name in names)
    before = OrderedDict((name, children[name]) for name in names[:index])
    behind = OrderedDict((name, children[name]) for name in names[index + 1 :])
    if len(path) == 1:
        before[path[0]] = children[path[0]]
    else:
        first, second = _slice(children[path[0]], path[1:])  # type: ignore[arg-type]
        before[path[0]] = first
        if second._modules:
            behind[path[0]] = second
            behind.move_to_end(path[0], last=False)
    return _sequence(before, model), _sequence(behind, model)


def _sequence(children: "OrderedDict[str, nn.Module | None]", model: nn.Module) -> nn.Sequential:
    part = nn.Sequential(children)  # type: ignore[arg-type]
    part.training = model.training
    return part


def _sequential_cuts(model: nn.Module) -> list[str]:
    """Every module that is reached through containers alone, but for the ends of the model."""
    names = [name for name, _ in model.named_modules() if name and _in_sequentials(model, name)]
    return [name for name in names if not _is_end(model, name)]


def _is_end(model: nn.Module, at: str) -> bool:
    owner = model
    for name in at.split("."):
        if name != list(owner._modules)[-1]:
            return False
        owner = owner._modules[name]  # type: ignore[assignment]
    return True
