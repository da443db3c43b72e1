"""From a group's `_target_` and keys to the object, its arguments checked against annotations."""

import difflib
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import torch

from fsl.argument_types import described_type
from fsl.errors import ConfigError
from fsl.importing.config_groups import is_group, named, names
from fsl.importing.import_paths import locate, public_path


def from_name(group: str, name: str) -> Any:
    """The object that a group's choice of this name describes."""
    return build(group, named(group, name))


def built(what: str, kind: type) -> Any:
    """An object of a class that was given in its place; ConfigError, which says `what`, where it needs arguments."""
    try:
        return kind()
    except TypeError as error:
        raise ConfigError(
            f"{what}={kind.__name__}: a class that needs arguments ({error}); give an object of it"
        ) from error


def build(group: str, config: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Any:
    """Instantiate a group's `_target_` with its keys; what is `given` besides goes where it has a parameter."""
    values = dict(config)
    target = values.pop("_target_", None)
    if not isinstance(target, str) or target == _MISSING:
        raise ConfigError(no_class(group))
    kind = locate(target)
    try:
        parameters = _parameters(kind)
    except (TypeError, ValueError):
        raise ConfigError(f"{group}._target_={target} cannot be called; name a class or a function") from None
    extra = {name: value for name, value in (given or {}).items() if name in parameters and name not in values}
    return kind(**fitting(group, kind, parameters, values | extra))


def fitting(
    group: str, kind: Any, parameters: Mapping[str, inspect.Parameter], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments to call `kind` with, as its annotations say; ConfigError for one that it lacks or does not take."""
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(kind)
    takes = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for name in values:
        if name not in takes and not open_ended:
            raise ConfigError(unknown(f"option of {group}", name, takes) + from_another(group, name, kind))
    for name in takes:
        if parameters[name].default is inspect.Parameter.empty and name not in values:
            hint = f" (+{group}.{name}=...)" if is_group(group) else ""
            raise ConfigError(f"{group}.{name} must be given: {public_path(kind)} has no default for it{hint}")
        if values.get(name) == _MISSING:
            raise ConfigError(
                f"{group}.{name} must be given: {described_type(hints.get(name, Any))} ({group}.{name}=...)"
            )
    return {name: checked(f"{group}.{name}", value, hints.get(name, Any)) for name, value in values.items()}


def _parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    """What a class or function takes; a module without a constructor of its own has torch's, which takes nothing."""
    if isinstance(kind, type) and getattr(kind, "__init__", None) is torch.nn.Module.__init__:
        return {}
    return inspect.signature(kind).parameters


def no_class(group: str) -> str:
    """The line for a group whose class is not named."""
    return f"{group} names no class; set {group}._target_ to a dotted import path"


def from_another(group: str, name: str, kind: Any) -> str:
    """What to do where an option is that of one of the group's choices, and the class is not that choice's."""
    if not is_group(group) or "custom" not in (choices := names(group)):
        return ""
    known = {choice: named(group, choice) for choice in choices if choice != "custom"}
    if any(locate(options["_target_"]) is kind for options in known.values()):
        return ""
    for choice, options in known.items():
        if name in options:
            return f"; it is an option of {group}={choice}: with {group}=custom a class has its own alone"
    return ""


T = TypeVar("T")
_MISSING = "???"  # what Hydra's files have for a value that is still to be given


def build_kind(group: str, config: Mapping[str, Any], kind: type[T]) -> T:
    """As `build`, for a class that must be of this kind."""
    found = build(group, config)
    if not isinstance(found, kind):
        target = config.get("_target_", "")
        raise ConfigError(
            f"{group}._target_={target} made a {type(found).__name__}, and {group} is to be a {kind.__name__}"
        )
    return found


def unknown(what: str, name: str, known: typing.Sequence[str]) -> str:
    """The line for a name that does not exist: the nearest one, and all."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    if not known:
        return f"there is no {what} '{name}'; it takes none"
    return f"there is no {what} '{name}'{hint} There are: {', '.join(known)}".replace("' There", "'. There", 1)


def checked(name: str, value: Any, hint: Any) -> Any:
    """The value as its type says, an integer taken for a float; ConfigError names value and type."""
    if _fits(value, hint):
        return float(value) if hint is float else value
    raise ConfigError(f"{name}={value!r}: it must be {described_type(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return value in arguments
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (int, str, bool):
        return type(value) is hint
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, typing.Sequence)):
        inner = [a for a in arguments if a is not Ellipsis]
        return isinstance(value, list | tuple) and (not inner or all(_fits(v, inner[0]) for v in value))
    return True  # a type of somebody else's: its constructor decides


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind.__init__ if inspect.isclass(kind) else kind)
    except (NameError, TypeError, AttributeError):
        return {}  # annotations that cannot be evaluated; the constructor checks for itself
