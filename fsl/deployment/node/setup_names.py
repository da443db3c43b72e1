"""Checks the classes that a run's setup names: each of the kind that its place asks for, loaders without paths."""

import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from flwr.serverapp.strategy import Strategy
from torch import nn

from fsl.data import Partitioner, TaskData, breast_cancer, cifar10, digits, from_table, from_text, images, party_csv
from fsl.errors import ConfigError, WireError
from fsl.importing.import_paths import locate, locate_allowed, named_kind, shown, within
from fsl.objective import Objective

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "strategy": Strategy,
    "model": nn.Module,
    "partition": Partitioner,
    "objective": (Objective, nn.Module),
}
_LOADERS = (digits, cifar10, images, from_table, from_text, breast_cancer, party_csv)  # fsl's own
_INSTRUCTION = re.compile(r"_.*_")  # Hydra's: _target_, _args_, _partial_, _recursive_, _convert_
_PLACE = re.compile(r"[/~]|[A-Za-z]:[\\/]|\\\\|[A-Za-z][\w+.-]*://|file:|(?:.*[\\/])?\.\.(?:[\\/]|$)")
_DEEPEST = 20
BY_CONFIGURATION = "fsl.models.huggingface"  # the one model that a function builds
OWN = ("path", "name", "tokenizer")  # options that say where data and a tokenizer lie, which only the node itself may


def check_groups(groups: Mapping[str, Mapping[str, Any]], allowed: tuple[str, ...]) -> None:
    """Raise WireError for a setup with a group that this node does not build: see `check_group`."""
    for group, config in groups.items():
        check_group(group, config, allowed)


def check_group(group: str, config: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Raise WireError where a group's class is not allowed or of another kind, or where its options name more classes.

    A data loader is one of fsl's own, or a function of an allowed package whose annotation returns a
    `fsl.data.TaskData`. Its options name no places: a node's own configuration says where data lie.
    """
    if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
        raise WireError(f"the run's {group} is no mapping of options")
    options = {name: value for name, value in config.items() if name != "_target_"}
    _refuse_instructions(group, options)
    target = config.get("_target_")
    if group == "data":
        given = {name: value for name, value in options.items() if name not in OWN}
        _refuse_places(target, _checked_loader(target, allowed), given)
        return
    if group == "model" and target == BY_CONFIGURATION:
        if options.get("pretrained") is not None:
            raise WireError(
                "the run's model names a place to load it from, and a node builds it from its configuration"
            )
        return
    try:
        if not within(target, allowed):
            raise WireError
        locate_allowed(str(target), allowed, _KINDS[group])
    except WireError:
        raise _refusal(group, target, allowed, named_kind(_KINDS[group])) from None


def check_metrics(metrics: Sequence[Any], allowed: tuple[str, ...]) -> None:
    """Raise WireError for a metric that is neither one of fsl's by name nor of an allowed package.

    Of an allowed package it takes classes with update and compute, and functions that are annotated -> float. Options
    are plain values.
    """
    for one in metrics:
        target = one.get("_target_") if isinstance(one, Mapping) else one
        if isinstance(one, Mapping):
            if not all(isinstance(name, str) for name in one):
                raise WireError("a metric of the run is no mapping of options")
            _refuse_instructions("metrics", {name: value for name, value in one.items() if name != "_target_"})
        if isinstance(one, str) and "." not in one:
            continue  # a name of fsl's: building it refuses others
        if not within(target, allowed) or not _is_metric(str(target), allowed):
            kind = "a class with update and compute, or a function that is annotated -> float"
            raise _refusal("metrics", target, allowed, kind)


def _is_metric(target: str, allowed: tuple[str, ...]) -> bool:
    try:
        found = locate(target)
    except ConfigError:
        return False
    if isinstance(found, type):
        accumulates = all(callable(getattr(found, name, None)) for name in ("update", "compute"))
        return accumulates and within(f"{found.__module__}.{found.__name__}", allowed)
    if not inspect.isfunction(found) or not within(f"{found.__module__}.{found.__name__}", allowed):
        return False
    try:
        return typing.get_type_hints(found).get("return") is float
    except Exception:  # an unresolvable annotation counts as none
        return False


def _checked_loader(target: Any, allowed: tuple[str, ...]) -> Callable[..., Any]:
    if within(target, allowed):
        try:
            found = locate(target)
        except ConfigError:
            found = None
        home = f"{getattr(found, '__module__', '')}.{getattr(found, '__name__', '')}"
        ours = f"{home}.".startswith("fsl.")
        if found in _LOADERS if ours else within(home, allowed) and _gives_data(found):
            return found
    kind = (
        "a loader of data: fsl.data.digits, cifar10, images, from_table, from_text, breast_cancer, party_csv, or a "
        "function that is annotated -> fsl.data.TaskData"
    )
    raise _refusal("data", target, allowed, kind)


def _gives_data(found: Any) -> bool:
    if isinstance(found, type):
        return issubclass(found, TaskData)
    if not inspect.isfunction(found):
        return False
    try:
        returned = typing.get_type_hints(found).get("return")
    except Exception:  # an unresolvable annotation counts as none
        return False
    return isinstance(returned, type) and issubclass(returned, TaskData)


def _refuse_instructions(group: str, value: Any, depth: int = 0) -> None:
    """Refuse options that ask for objects besides the group's own, at any depth."""
    if depth > _DEEPEST:
        raise WireError(f"the run's {group} has options more than {_DEEPEST} deep")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if _INSTRUCTION.fullmatch(str(name)):
                told = f"names {shown(inner)}" if name == "_target_" else f"has the key {shown(str(name))}"
                raise WireError(
                    f"the run's {group} {told} among its options, and a node builds nothing that options name; give "
                    "plain values"
                )
            _refuse_instructions(group, inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_instructions(group, inner, depth + 1)


def _refuse_places(target: Any, loader: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that say where data lie."""
    try:
        hints = typing.get_type_hints(loader)
    except Exception:
        hints = {}
    for name, value in options.items():
        of_paths = any(
            isinstance(hint, type) and issubclass(hint, PurePath) for hint in (hints.get(name), *_inside(hints, name))
        )
        if (of_paths and value is not None) or any(_PLACE.match(text) for text in _texts(value)):
            raise WireError(
                f"the run's data give {shown(target)} {name}={shown(value)}, and where data lie only this node says; "
                "set data-path or data-name in the node configuration"
            )


def _texts(value: Any) -> Iterator[str]:
    """Yields all texts in a value, whose depth is already checked."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for inner in [*value, *(value.values() if isinstance(value, Mapping) else ())]:
            yield from _texts(inner)


def _inside(hints: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    return typing.get_args(hints.get(name))


def _refusal(group: str, target: Any, allowed: tuple[str, ...], kind: str) -> WireError:
    return WireError(
        f"the run's {group} names {shown(target)}, but this node takes classes only from: {', '.join(allowed)} "
        f"(allow=... in the node configuration adds packages), and as {group} only {kind}"
    )
