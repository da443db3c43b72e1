"""Finds what modules remember besides parameters and buffers: counters, caches, lists of what they saw.

Devices do not swap it, so a result must not depend on it.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_INTERNAL = frozenset((*vars(nn.Module()), "_flat_weights", "_flat_weight_refs"))  # torch's own attributes of modules
PROBED = 16  # steps after `count_on`, so that every remainder of a number up to that occurs
_MANY = (
    14_414_400 - PROBED // 2
)  # steps; the middle is a multiple of each number up to 16, of 20, 50, 100, exact in float32
_LONGER = 10_000  # elements by which a list would have grown
_DEPTH = 4  # levels of nesting, of lists in dicts in attributes
_NUMBERS = 4096  # elements at most of a tensor that may be a counter


def remembered(model: nn.Module) -> dict[str, Any]:
    """Returns attributes that are no parameter, buffer or module, by name; copies mutable ones."""
    held = _held(model)
    return {name: _copied(value, held, _DEPTH) for name, _, _, value in _attributes(model)}


def count_on(model: nn.Module, since: Mapping[str, Any]) -> bool:
    """Move numbers and lists that have changed `since` then to where many more steps would bring them.

    Whole numbers go right before a multiple of most periods; `PROBED` steps then reach them all. Numbers in lists,
    dicts and plain objects count as well. Returns whether there are any.
    """
    held = _held(model)
    changes = [_counted(value, since.get(name), held, _DEPTH) for name, _, _, value in _attributes(model)]
    for (_, owner, key, value), (found, now) in zip(_attributes(model), changes):
        if found and now is not value:
            owner[key] = now
    return any(found for found, _ in changes)


def same(one: Any, other: Any) -> bool:
    """Returns whether two values of `remembered` are equal; opaque objects are where they are the same object."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool(np.array_equal(one, other))
    if isinstance(one, _Contents):
        return one.kind is other.kind and same(one.values, other.values)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same(first, second) for first, second in zip(one, other))
    return isinstance(one, bool | int | float | str | complex) and one == other


class _Contents:
    """The contents of a container or object at one time."""

    def __init__(self, kind: type, values: tuple[Any, ...]):
        self.kind = kind
        self.values = values


def _attributes(model: nn.Module) -> list[tuple[str, dict[str, Any], str, Any]]:
    """Returns name in the model, holding dict, key there, and value of each attribute."""
    return [
        (f"{prefix}.{name}" if prefix else name, module.__dict__, name, value)
        for prefix, module in model.named_modules()
        for name, value in module.__dict__.items()
        if name not in _INTERNAL
    ]


def _held(model: nn.Module) -> set[int]:
    """Returns ids of parameters and buffers, which devices swap, and of modules, which are looked at by themselves."""
    return {id(one) for one in (*model.parameters(), *model.buffers(), *model.modules())}


def _copied(value: Any, held: set[int], depth: int) -> Any:
    if id(value) in held:
        return value
    if isinstance(value, Tensor) and value.layout is torch.strided:
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if not depth or (inside := _inside(value)) is None:
        return value
    return _Contents(type(value), tuple(_copied(one, held, depth - 1) for one in inside))


def _inside(value: Any) -> list[Any] | None:
    """Returns what a container or plain object holds, in order, keys before values; None for anything else."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list | tuple | deque):
        return list(value)
    if isinstance(value, set):
        return sorted(value, key=repr)
    return [*vars(value), *vars(value).values()] if _is_plain(value) else None


def _is_plain(value: Any) -> bool:
    return (
        hasattr(value, "__dict__")
        and not callable(value)
        and not hasattr(value, "__deepcopy__")  # a copy of a model may share it with the model
        and not isinstance(value, type | nn.Module | Tensor | torch.Generator)
        and type(value).__module__.partition(".")[0] not in ("torch", "builtins", "logging", "threading")
    )


def _counted(value: Any, since: Any, held: set[int], depth: int) -> tuple[bool, Any]:
    """Returns whether a value has changed `since`, and its replacement; changes containers in place."""
    if id(value) in held or not depth:
        return False, value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (False, value) if same(value, since) else (True, _later(value, since))
    if isinstance(value, Tensor | np.ndarray):
        return _counted_array(value, since)
    if type(value) is tuple:
        before = (
            since.values if isinstance(since, _Contents) and len(since.values) == len(value) else [None] * len(value)
        )
        pairs = [_counted(one, old, held, depth - 1) for one, old in zip(value, before)]
        return any(found for found, _ in pairs), tuple(now for _, now in pairs)
    if not isinstance(value, list | deque | dict | set) and not _is_plain(value):
        return False, value
    known: tuple[Any, ...] = since.values if isinstance(since, _Contents) and since.kind is type(value) else ()
    place: Any = vars(value) if _is_plain(value) else value
    if isinstance(place, dict):
        half = len(known) // 2
        by_key = dict(zip(known[:half], known[half:]))
        return _counted_items(place, [(key, by_key.get(key)) for key in list(place)], held, depth), value
    grown = isinstance(since, _Contents) and len(place) > len(known)
    if isinstance(place, set):
        if grown:
            place.update(range(_MANY, _MANY + _LONGER))
        return grown, value
    found = _counted_items(place, list(enumerate(known[: len(place)])), held, depth)
    if grown:
        place.extend([place[-1]] * _LONGER)
    return found or grown, value


def _counted_items(place: Any, items: list[tuple[Any, Any]], held: set[int], depth: int) -> bool:
    found = False
    for key, since in items:
        changed, now = _counted(place[key], since, held, depth - 1)
        if changed:
            place[key] = now
            found = True
    return found


def _counted_array(value: Any, since: Any) -> tuple[bool, Any]:
    size = value.numel() if isinstance(value, Tensor) else value.size
    number = value.dtype.kind in "iuf" if isinstance(value, np.ndarray) else value.dtype not in (torch.bool,)
    if same(value, since) or type(since) is not type(value) or not number or size > _NUMBERS:
        return False, value
    if size == 1:
        later = _later(value.item(), since.item())
        return True, torch.full_like(value, later) if isinstance(value, Tensor) else np.full_like(value, later)
    return True, value + _MANY


def _later(value: float, since: Any) -> float:
    """Returns a counter's value after many more steps in its direction."""
    many = -_MANY if isinstance(since, int | float) and value < since else _MANY
    return many if float(value).is_integer() else value + many
