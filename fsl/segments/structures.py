"""Describes how tensors lie in what a model passes: nested tuples, lists, dicts and dataclasses, as text and back.

A description travels with smashed data of several tensors. It holds no values but constants (a length, a flag), and
names classes only by import paths, which the other end looks up among the packages that it allows.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fsl.errors import SplitError, WireError

MAX_TEXT = 4096  # characters of a description
MAX_TENSORS = 32
_DEPTH = 8
_TENSOR = "*"
_CONSTANTS = (bool, int, float, str)
_KINDS: dict[str, type] = {}  # classes that this process has met in what its own models pass, by import path

Locate = Callable[[str], type]


def described(values: Any) -> tuple[str, list[Tensor]]:
    """Returns the description of what a model passes, and its tensors in order; SplitError for what cannot cross."""
    tensors: list[Tensor] = []
    text = json.dumps(_described(values, tensors, 0), separators=(",", ":"))
    if len(text) > MAX_TEXT or len(tensors) > MAX_TENSORS:
        raise SplitError(
            f"what the front passes has {len(tensors)} tensors and a description of {len(text)} characters; at most "
            f"{MAX_TENSORS} and {MAX_TEXT} can cross a cut"
        )
    return text, tensors


def rebuilt(text: str, tensors: Sequence[Any]) -> Any:
    """Returns what a model passes, from its description and as many tensors (or whatever stands for them)."""
    found = iter(tensors)
    return _rebuilt(_parsed(text), found)


def count(text: str) -> int:
    """Returns the number of tensors of a description."""
    return sum(1 for _ in _leaves(_parsed(text)))


def names(text: str) -> list[str]:
    """Returns a name for each tensor of a description: `hidden`, `1`, `cache.0`; empty for a tensor alone."""
    return list(_leaves(_parsed(text)))


def classes(text: str) -> dict[str, type]:
    """Returns the classes that a description of this process's own names, by import path."""
    return {path: _KINDS[path] for path in _paths(_parsed(text))}


def at_rows(two: str, three: str, rows: int) -> str:
    """Returns the description for a batch of so many rows, from those for batches of two rows and of three.

    Numbers in them may count rows (a shape that crosses).
    """
    return json.dumps(_at_rows(json.loads(two), json.loads(three), rows), separators=(",", ":"))


def tensors_in(values: Any) -> list[Tensor]:
    """Returns the tensors of what a model passes, in the order of `described`, whatever else is beside them."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        parts = list(values.values())
    elif is_dataclass(values) and not isinstance(values, type):
        parts = [getattr(values, each.name, None) for each in fields(values) if each.init]
    else:
        parts = list(values) if isinstance(values, tuple | list) else []
    return [tensor for part in parts for tensor in tensors_in(part)]


def rebuilt_at_rows(two: str, three: str, rows: Any, tensors: Sequence[Any]) -> Any:
    """Returns what a model passes for so many rows, which may be a symbol of an export's; see `at_rows`."""
    return _rebuilt(_at_rows(json.loads(two), json.loads(three), rows), iter(tensors))


def _at_rows(two: Any, three: Any, rows: int) -> Any:
    if isinstance(two, dict) and isinstance(three, dict):
        before, after = two["="], three["="]
        counts = type(before) is int and type(after) is int
        return {"=": before + (after - before) * (rows - 2) if counts else before}
    if isinstance(two, list) and isinstance(three, list):
        return [_at_rows(one, other, rows) for one, other in zip(two, three, strict=True)]
    return two


def check_received(text: str, locate: Locate) -> None:
    """Check a description from the network, and look its classes up by `locate`; WireError for what cannot be."""
    if len(text) > MAX_TEXT:
        raise WireError(
            f"a description of what crosses the cut has {len(text)} characters; at most {MAX_TEXT} may come"
        )
    try:
        plan = json.loads(text)
        found = _check(plan, 0, locate)
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError(f"a description of what crosses the cut cannot be read ({error})") from None
    if not 1 <= found <= MAX_TENSORS:
        raise WireError(f"a description of what crosses the cut has {found} tensors; from 1 to {MAX_TENSORS} may come")


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return json.loads(text)


def _described(values: Any, tensors: list[Tensor], depth: int) -> Any:
    if isinstance(values, Tensor):
        tensors.append(values)
        return _TENSOR
    if depth >= _DEPTH:
        raise SplitError(f"what the front passes is nested more than {_DEPTH} deep; pass something flatter")
    if values is None or type(values) in _CONSTANTS:
        return {"=": values}
    kind = type(values)
    if kind in (tuple, list, torch.Size):
        name = "list" if kind is list else "tuple"
        return [name, *(_described(value, tensors, depth + 1) for value in values)]
    if is_dataclass(values):
        items = [(each.name, getattr(values, each.name, None)) for each in fields(values) if each.init]
    elif hasattr(kind, "_fields") and isinstance(values, tuple):
        items = list(zip(kind._fields, values))
    elif isinstance(values, Mapping) and all(isinstance(key, str) for key in values):
        return ["dict", *([key, _described(value, tensors, depth + 1)] for key, value in values.items())]
    else:
        raise SplitError(
            f"what the front passes holds a {kind.__name__}, and only tensors, numbers, texts and None can cross a "
            "cut, in tuples, lists, dicts with texts as keys, and dataclasses"
        )
    path = f"{kind.__module__}.{kind.__qualname__}"
    _KINDS[path] = kind
    return ["class", path, *([name, _described(value, tensors, depth + 1)] for name, value in items)]


def _rebuilt(plan: Any, tensors: Iterator[Any]) -> Any:
    if plan == _TENSOR:
        return next(tensors)
    if isinstance(plan, dict):
        return plan["="]
    kind, *items = plan
    if kind in ("tuple", "list"):
        parts = [_rebuilt(item, tensors) for item in items]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "dict":
        return {key: _rebuilt(item, tensors) for key, item in items}
    path, *items = items
    return _KINDS[path](**{key: _rebuilt(item, tensors) for key, item in items})


def _leaves(plan: Any, name: str = "") -> Iterator[str]:
    if plan == _TENSOR:
        yield name
    elif isinstance(plan, list):
        named = plan[2:] if plan[0] == "class" else plan[1:]
        pairs = named if plan[0] in ("dict", "class") else [[str(index), item] for index, item in enumerate(named)]
        for key, item in pairs:
            yield from _leaves(item, f"{name}.{key}" if name else key)


def _paths(plan: Any) -> Iterator[str]:
    if isinstance(plan, list):
        kind, *items = plan
        if kind == "class":
            yield items.pop(0)
        for item in items:
            yield from _paths(item[1] if kind in ("class", "dict") else item)


def _check(plan: Any, depth: int, locate: Locate) -> int:
    if plan == _TENSOR:
        return 1
    if depth >= _DEPTH:
        raise ValueError(f"it is nested more than {_DEPTH} deep")
    if isinstance(plan, dict):
        if list(plan) != ["="] or not (plan["="] is None or type(plan["="]) in _CONSTANTS):
            raise ValueError("a constant is a number, a text, true, false or null")
        return 0
    if not isinstance(plan, list) or not plan:
        raise ValueError("it holds something else than tensors, constants, tuples, lists, dicts and dataclasses")
    kind, *items = plan
    if kind in ("tuple", "list"):
        return sum(_check(item, depth + 1, locate) for item in items)
    if kind == "class":
        path, *items = items
        found = locate(path)
        if not (is_dataclass(found) or hasattr(found, "_fields")):
            raise ValueError(f"{path[:100]!r} is neither a dataclass nor a named tuple")
        _KINDS[path] = found
    elif kind != "dict":
        raise ValueError("it holds something else than tensors, constants, tuples, lists, dicts and dataclasses")
    keys = [key for key, _ in items]
    if len(set(keys)) < len(keys) or not all(isinstance(key, str) for key in keys):
        raise ValueError("a key is a text, and comes once")
    return sum(_check(item, depth + 1, locate) for _, item in items)
