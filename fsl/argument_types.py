"""Refuses arguments of a wrong type where a user calls: by a function's annotations, in one line.

The command line checks its values by the same annotations (`fsl.importing.building`), more strictly: there a value has
been parsed, and here it may be NumPy's or torch's.
"""

import inspect
import operator
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

from fsl.errors import ConfigError
from fsl.gapped_range import GappedRange
from fsl.quoting import short

T = TypeVar("T")
_Check = Callable[[Any], bool]


def checks_types(
    prefix: str = "",
    error: type[ConfigError] = ConfigError,
    leave: Collection[str] = (),
    only: Collection[str] | None = None,
) -> Callable[[T], T]:
    """Decorate a function or a class, so that a call with an argument of a wrong type raises `error`, in one line.

    The line names the argument behind `prefix`, its value, and what the annotation allows. Arguments in `leave`, all
    but those in `only`, and those without an annotation are the function's own to check; so are the values of a
    Literal. Numbers may be NumPy's and torch's, and lists whatever has a length and can be gone through.
    """

    def decorate(given: T) -> T:
        if isinstance(given, type):
            given.__init__ = _checked(given.__init__, prefix, error, leave, only)  # type: ignore[misc]
            return given
        return _checked(given, prefix, error, leave, only)

    return decorate


def _checked(
    function: Any, prefix: str, error: type[ConfigError], leave: Collection[str], only: Collection[str] | None
) -> Any:
    parameters = inspect.signature(function).parameters.values()
    places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    wanted = [name for name in named if name not in leave and (only is None or name in only)]

    @cache
    def known() -> tuple[dict[str, _Check], dict[str, Any]]:
        hints = typing.get_type_hints(function)  # when first called: annotations may name what is defined later
        hints = {name: hints[name] for name in wanted if name in hints}
        return {name: _check_of(hint) for name, hint in hints.items()}, hints

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        checks, hints = known()
        for name, value in (*zip(places, args), *kwargs.items()):
            if (check := checks.get(name)) is not None and not check(value):
                wants = described_type(hints[name], python=True)
                raise error(f"{prefix}{name}={short(value)}: give {wants}")
        return function(*args, **kwargs)

    return checked


def _check_of(hint: Any) -> _Check:
    """Returns what says whether a value is of this type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _CHECKS:
        return _CHECKS[hint]
    if origin in (types.UnionType, typing.Union):
        options = [_check_of(option) for option in arguments]
        return lambda value: any(option(value) for option in options)
    if origin is Literal:
        kinds = tuple({type(argument) for argument in arguments})
        return lambda value: isinstance(value, kinds)
    if origin is type:
        return lambda value: isinstance(value, type)
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return callable
    kind = hint if origin is None else origin
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return lambda value: True
    if issubclass(kind, Mapping):
        keys, values = map(_check_of, arguments or (Any, Any))
        return lambda value: isinstance(value, Mapping) and all(keys(k) and values(v) for k, v in value.items())
    if kind in _LISTS:
        return _list_of(_check_of(arguments[0]) if arguments else _anything, once=kind is Iterable)
    return lambda value: isinstance(value, kind)


def _list_of(inner: _Check, once: bool) -> _Check:
    """Returns what says whether a value is a list of such; one that can be gone through `once` is not gone through."""

    def check(value: Any) -> bool:
        if isinstance(value, str | bytes | Mapping | type) or not hasattr(value, "__iter__"):
            return False
        if getattr(value, "ndim", 1) == 0:
            return False
        if not hasattr(value, "__len__"):
            return once
        if inner is _anything:
            return True
        if isinstance(value, range | GappedRange):
            value = value[:1]  # of a million numbers, of which one is like another
        return all(inner(one) for one in (value.tolist() if hasattr(value, "tolist") else value))

    return check


def _anything(value: Any) -> bool:
    return True


def _is_whole(value: Any) -> bool:
    if type(value) is int:
        return True
    try:
        return type(value).__name__ not in ("bool", "bool_") and operator.index(value) is not None
    except TypeError:  # an array or a tensor of another kind has an __index__ that fails
        return False


def _is_number(value: Any) -> bool:
    if type(value) in (float, int):
        return True
    return not isinstance(value, bool | type) and hasattr(value, "__float__") and not getattr(value, "ndim", 0)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")


_LISTS = (list, tuple, set, frozenset, Collection, Sequence, Iterable)
_CHECKS: dict[Any, _Check] = {
    Any: _anything,
    object: _anything,
    None: lambda value: value is None,
    type(None): lambda value: value is None,
    int: _is_whole,
    float: _is_number,
    bool: _is_flag,
    Path: lambda value: isinstance(value, os.PathLike),
}


def described_type(hint: Any, python: bool = False) -> str:
    """What a value of this type is, in words: those of the command line, or `python`'s."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(described_type(option, python) for option in arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is type:
        return "a class"
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return "a function"
    if origin is not None and issubclass(origin, Mapping):
        told = "".join(f" {way} {_plural(one, python)}" for way, one in zip(("from", "to"), arguments))
        return f"a mapping{told}" if python else "a group of keys"
    if origin in _LISTS or (origin is not None and not python):
        return "a list of " + (_plural(arguments[0], python) if arguments else "values")
    if hint in (None, type(None)):
        return "None" if python else "null"
    names = {Any: "a value", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    if hint in names:
        return names[hint]
    if hint is bool:
        return "True or False" if python else "true or false"
    return _class_in_words(origin or hint) if python else str(hint)


def _class_in_words(kind: Any) -> str:
    name, package = getattr(kind, "__name__", str(kind)), getattr(kind, "__module__", "").partition(".")[0]
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name} of {package}"


def _plural(hint: Any, python: bool) -> str:
    one = described_type(hint, python)
    if " or " in one:
        return f"values, each {one}"
    what, behind, of_what = (
        one.removeprefix("an ").removeprefix("a ").partition(" from " if " from " in one else " of ")
    )
    return f"{what}s{behind}{of_what}"
