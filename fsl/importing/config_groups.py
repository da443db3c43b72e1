"""The choices that come with fsl, by group: what a name means on the command line it means in Python."""

import difflib
import typing
from importlib import resources
from typing import Any

from omegaconf import OmegaConf

from fsl.errors import ConfigError


def names(group: str) -> list[str]:
    """The choices of a group that come with fsl."""
    files = (resources.files("fsl.configs") / group).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def named(group: str, name: str) -> dict[str, Any]:
    """What the group's choice of this name says, so that a name means in Python what it means on the command line."""
    if name not in (known := names(group)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{group}={name!r}: there is no such {group};{hint} available are: {', '.join(known)}")
    text = (resources.files("fsl.configs") / group / f"{name}.yaml").read_text(encoding="utf-8")
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text))) or {}


def is_group(name: str) -> bool:
    """Whether it is one of the configuration's groups."""
    return (resources.files("fsl.configs") / name).is_dir()
