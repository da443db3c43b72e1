"""Turns an exception of Hydra, OmegaConf or fsl into one clear line."""

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString
from hydra.errors import HydraException

from fsl.argument_types import described_type
from fsl.errors import ConfigError
from fsl.importing.building import unknown
from fsl.quoting import printable
from fsl.run.config import key_types

# What null stands for in groups that a run can do without.
_NONE = {
    "experiment": "[]",
    "privacy": "[]",
    "trackers": "[]",
    "mobility": "none",
    "availability": "always",
    "selection": "uniform",
    "aggregator": "mean",
}


def with_choices(arguments: Sequence[str]) -> list[str]:
    """Replace null by none where a group may be none.

    ConfigError where a group's choice is no name, as in edge=2, for which Hydra has no clear message.
    """
    return [_added(given) for argument in arguments for given in _codecs_in_turn(_with_choice(argument))]


_NAMED_BY_USERS = ("tags", "exits", "exit_training.weights")  # mappings of which users name the keys


def _added(argument: str) -> str:
    """Returns `exits={pool1: conv}`, or `tags.study=pilot`, with the ++ by which Hydra takes new keys."""
    key = argument.partition("=")[0]
    named = key in _NAMED_BY_USERS or key.startswith(tuple(f"{name}." for name in _NAMED_BY_USERS))
    return f"++{argument}" if named else argument


def _codecs_in_turn(argument: str) -> list[str]:
    """Returns `codec=[c3,int8]` as the options that say it: Hydra would merge the two files, and one would be lost."""
    key, _, text = argument.partition("=")
    if key.lstrip("+") != "codec" or "[" not in text:
        return [argument]
    try:
        (override,) = OverridesParser.create().parse_overrides([f"codec={text}"])
    except HydraException:
        return [argument]
    value: Any = override._value
    chosen = value.list if isinstance(value, ChoiceSweep) else [value]
    stages = ["[" + ",".join(map(str, one if isinstance(one, list) else [one])) + "]" for one in chosen]
    return ["codec=chain", f"codec.stages={','.join(stages)}"]


def _with_choice(argument: str) -> str:
    key, equals, text = argument.partition("=")
    group = key.lstrip("+").partition("@")[0]
    if argument.startswith(("-", "~")) or not equals or not (group.isidentifier() or group.startswith("hydra/")):
        return argument
    folder = resources.files("fsl.configs") / group
    if not (folder.is_dir() or group.startswith("hydra/")):
        return argument
    try:
        (override,) = OverridesParser.create().parse_overrides([f"{group}={text}"])
    except HydraException:
        return argument  # Hydra reports the mistake
    value: Any = override._value
    chosen = value.list if isinstance(value, ChoiceSweep) else [value]
    if group in _NONE and any(one is None for one in chosen):
        if override.is_sweep_override() and not re.fullmatch(r"[\w,]+", text):
            raise ConfigError(f"{argument}: write {_NONE[group]} for null")
        return f"{key}={','.join(_NONE[group] if one.lower() == 'null' else one for one in text.split(','))}"
    if all(isinstance(one, str | QuotedString | list | Glob) and one != "" for one in chosen):
        return argument
    if folder.is_dir():
        choices = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name[0] != "_")
        allowed = f"there is no such {group}; available are: {', '.join(choices)}"
    else:
        allowed = "give the name of one that is installed"
    counted = f"{group}s" in [name for name, kind in key_types().items() if kind is int]
    hint = f"; how many there are is {group}s={text}" if counted and re.fullmatch(r"[\d,]+", text) else ""
    raise ConfigError(f"{argument}: {allowed}{hint}")


def one_line(error: BaseException) -> str:
    """Returns the error as one line that names the value, what is allowed, and what to do."""
    text = printable(str(error), keep="\n\t")
    choices = re.search(
        r"Could not find '([^']+)'\s+Available options in '([^']+)':\s+(.*?)(?:\s+Config search|$)", text, re.S
    )
    if choices:
        wanted, group, options = choices.groups()
        name = wanted.removeprefix(f"{group}/")
        if (group, name) == ("hydra/launcher", "joblib"):
            return "hydra/launcher=joblib: it is not installed; pip install 'fsl-flower[sweep]'"
        return f"{group}={name}: there is no such {group}; available are: {', '.join(options.split())}"
    chosen = re.search(r"Could not load '([^'/]+)/([^']+)'", text)
    if chosen:  # Hydra does not list the choices for a name in a list
        group, name = chosen.groups()
        files = [path.name for path in (resources.files("fsl.configs") / group).iterdir()]
        options = sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))
        return f"{group}={name}: there is no such {group.removesuffix('s')}; available are: {', '.join(options)}"
    merged = re.match(r"Error merging override (.*)", text, re.S)
    if merged:
        override = merged.group(1).strip()
        name = override.partition("=")[0].lstrip("+")
        if name in (hints := key_types()):
            return f"{override}: it must be {described_type(hints[name])}"
        return f"{override}: {' '.join(str(error.__cause__ or 'it is of another type').partition(chr(10))[0].split())}"
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        name = key.group(1)
        if "." not in name:
            return unknown("key", name, list(key_types()))
        group = name.partition(".")[0]
        return f"there is no key '{name}'; 'fsl-simulate --cfg job --package {group}' shows what {group} has"
    return " ".join(text.split())
