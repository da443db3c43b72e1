"""Finds where modules hold tensors: in their tables, and in plain attributes, lists and dicts."""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Slot = tuple[Any, Any]  # a dict or list, and the key or index in it

_DEPTH = 4  # levels of nesting, of lists in dicts in attributes
_CONTAINERS = (dict, list, set, deque)
_HOOKS = (dict, OrderedDict)  # what torch keeps hooks in
_TABLES = frozenset(("_parameters", "_buffers", "_modules"))


def tables(module: nn.Module) -> tuple[dict[str, Slot], dict[str, Slot]]:
    """Returns the slots of parameters and buffers by name: those of the state_dict, and the transient ones.

    Transient are buffers that are not persistent, and those that are None until a forward sets them.
    """
    lasting: dict[str, Slot] = {}
    transient: dict[str, Slot] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for table in (owner._parameters, owner._buffers):
            for key, value in table.items():
                name = f"{prefix}.{key}" if prefix else key
                if table is owner._buffers and (value is None or key in owner._non_persistent_buffers_set):
                    transient[name] = table, key
                elif value is not None:
                    lasting[name] = table, key
    return lasting, transient


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Undo changes to a model's modules: their attributes, and the contents of their tables, lists, dicts and sets."""
    found = [
        (module, dict(module.__dict__), [(v, v.copy()) for v in module.__dict__.values() if isinstance(v, _CONTAINERS)])
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, containers in found:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for container, before in containers:
                if not _has_the_same(container, before):
                    _refill(container, before)


def _has_the_same(container: Any, before: Any) -> bool:
    if not container or len(container) != len(before):  # most are empty: a module has a dozen tables of hooks
        return len(container) == len(before)
    pairs = zip(container.items(), before.items()) if isinstance(container, dict) else zip(container, before)
    if isinstance(container, dict):
        return all(one[0] is other[0] and one[1] is other[1] for one, other in pairs)
    return all(one is other for one, other in pairs)


def empty_ones(model: nn.Module) -> dict[int, Any]:
    """Returns, by id, an empty dict for each that a model's modules hold: a memo for `copy.deepcopy`.

    A module has a dozen of them, for hooks, and most of a copy's time went into making them one by one.
    """
    held = (value for module in model.modules() for value in module.__dict__.values())
    return {id(value): type(value)() for value in held if type(value) in _HOOKS and not value}


def _refill(container: Any, before: Any) -> None:
    container.clear()
    container.extend(before) if isinstance(container, list | deque) else container.update(before)


def plain_slots(module: nn.Module, wanted: Collection[int]) -> dict[int, list[Slot]]:
    """Returns, by id, the slots in attributes, lists and dicts of a module's modules that hold tensors of these ids."""
    found: dict[int, list[Slot]] = {}
    for owner in module.modules():
        for name, value in _attributes(owner):
            if isinstance(value, Tensor):
                _add(found, wanted, value, owner.__dict__, name)
            else:
                _search(found, wanted, value, _DEPTH)
    return found


def _search(found: dict[int, list[Slot]], wanted: Collection[int], holder: Any, depth: int) -> None:
    if not isinstance(holder, list | dict) or not depth:
        return
    for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
        if isinstance(value, Tensor):
            _add(found, wanted, value, holder, key)
        else:
            _search(found, wanted, value, depth - 1)


def _add(found: dict[int, list[Slot]], wanted: Collection[int], tensor: Tensor, holder: Any, key: Any) -> None:
    if id(tensor) in wanted:
        found.setdefault(id(tensor), []).append((holder, key))


def _attributes(owner: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in owner.__dict__.items() if name not in _TABLES]


def in_double(model: nn.Module) -> bool:
    """Returns whether a model computes in float64: all of its floating-point parameters are."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return kinds == {torch.float64}
