"""One clear line from an exception of Hydra's, OmegaConf's or ours."""

import re
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources

from fsl.config import RunConfig, unknown
from fsl.errors import ConfigError


def check_choices(arguments: Sequence[str]) -> None:
    """Refuse a number where a group's choice belongs, as in edge=2: Hydra has no line for it."""
    counts = [field.name for field in fields(RunConfig) if field.type is int]
    for argument in arguments:
        group, _, value = argument.partition("=")
        folder = resources.files("fsl.configs") / group
        if re.fullmatch(r"[\d.,-]+", value) and group.isidentifier() and folder.is_dir():
            choices = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name[0] != "_")
            hint = f"; how many there are is {group}s={value}" if f"{group}s" in counts else ""
            raise ConfigError(f"{argument}: there is no such {group}; available are: {', '.join(choices)}{hint}")


def one_line(error: BaseException) -> str:
    """The error as one line that names the value, what is allowed, and what to do."""
    text = str(error)
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
    if chosen:  # a name in a list of choices, for which Hydra does not say what there is
        group, name = chosen.groups()
        files = [path.name for path in (resources.files("fsl.configs") / group).iterdir()]
        options = sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))
        return f"{group}={name}: there is no such {group.removesuffix('s')}; available are: {', '.join(options)}"
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        name = key.group(1)
        if "." not in name:
            return unknown("key", name, [field.name for field in fields(RunConfig)])
        group = name.partition(".")[0]
        return f"there is no key '{name}'; 'fsl-simulate --cfg job --package {group}' shows what {group} has"
    return " ".join(text.split())
