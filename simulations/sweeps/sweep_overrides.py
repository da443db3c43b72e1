"""Keeps the overrides with which a sweep was started, as typed, and restores them to resume it."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fsl.errors import CheckpointError, ConfigError
from fsl.files import write_json
from fsl.quoting import override_value, shell_line

STARTED = "sweep.json"  # file in a sweep's folder


@dataclass(frozen=True)
class SweepStart:
    """How a sweep was started: overrides as typed, the directory, and Hydra's options."""

    overrides: list[str]
    directory: str | None = None
    config_dir: str | None = None  # absolute
    config_name: str = "config"

    def write(self, sweep: Path) -> None:
        """Write it into a sweep's folder."""
        write_json(sweep / STARTED, asdict(self))


def resumed_folder(overrides: Sequence[str]) -> Path | None:
    """Returns the sweep that `resume=` names; None without one."""
    for override in _parsed(overrides):
        if override.get_key_element().lstrip("+") != "resume":
            continue
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: one sweep can be gone on with at a time")
        value = override.value()
        if value is None:
            return None
        folder = Path(str(OmegaConf.create({"resume": value})["resume"]))  # resolves references such as ${oc.env:HOME}
        if not any((folder / name).exists() for name in (STARTED, "multirun.yaml")):
            raise ConfigError(
                f"resume={folder}: there is no sweep in it (no {STARTED}); -m resume=<folder> takes the folder of "
                "a sweep, resume=<folder> without -m that of a run"
            )
        return folder
    return None


def continued(folder: Path, given: Sequence[str]) -> SweepStart:
    """Returns the start of the sweep to resume, of which only the launcher may change.

    ConfigError where other given overrides disagree with it.
    """
    started = _read(folder)
    kept = [override for override in _parsed(started.overrides) if not _is_about_place(override)]
    before = {override.get_key_element(): override for override in kept}
    for override in before.values():
        if getattr(override.value(), "shuffle", False):
            raise ConfigError(
                f"resume={folder}: {override.input_line} would give the jobs other numbers; start a new sweep"
            )
    launcher: list[Override] = []
    for override in _parsed(given):
        if _is_about_place(override):
            continue
        key = override.get_key_element()
        if _is_launcher(override):
            launcher.append(override)
        elif key not in before:
            raise ConfigError(
                f"resume={folder}: that sweep was not given {override.input_line}; leave it out, or start a new sweep"
            )
        elif _meant(before[key]) != _meant(override):
            raise ConfigError(
                f"resume={folder}: that sweep has {before[key].input_line}, not {override.input_line}; leave it out, "
                "or start a new sweep"
            )
    if any(override.key_or_group == "hydra/launcher" for override in launcher):
        kept = [override for override in kept if not _is_launcher(override)]
    newer = {override.key_or_group for override in launcher}
    lines = [override.input_line for override in [*(k for k in kept if k.key_or_group not in newer), *launcher]]
    return replace(started, overrides=[str(line) for line in lines])


def go_on(folder: Path, flags: Sequence[str]) -> str:
    """Returns the command that resumes a sweep."""
    return shell_line(["fsl-simulate", "-m", *flags, f"resume={override_value(os.path.relpath(folder))}"])


def _read(folder: Path) -> SweepStart:
    path = folder / STARTED
    try:
        if path.exists():
            started = SweepStart(**json.loads(path.read_text(encoding="utf-8")))
            if not all(isinstance(line, str) for line in started.overrides):
                raise TypeError("its overrides are no texts")
            return started
        path = folder / "multirun.yaml"  # for sweeps older than `sweep.json`
        hydra: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        overrides = hydra["hydra"]["overrides"]
        return SweepStart([str(line) for line in [*overrides["task"], *overrides["hydra"]]])
    except (OSError, ValueError, KeyError, TypeError, OmegaConfBaseException, YAMLError) as error:
        raise CheckpointError(f"{path} is damaged ({' '.join(str(error).split())}); start a new sweep") from None


def _parsed(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def _is_about_place(override: Override) -> bool:
    """Returns whether an override only names the sweep or asks for one."""
    return override.key_or_group in ("resume", "hydra.mode", "hydra.sweep.dir")


def _is_launcher(override: Override) -> bool:
    return override.key_or_group == "hydra/launcher" or override.key_or_group.startswith("hydra.launcher.")


def _meant(override: Override) -> tuple[Any, ...]:
    """Returns an override's meaning, however it is written."""
    return override.type, override.value_type, _plain(override._value)


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return type(value).__name__, {name: _plain(item) for name, item in vars(value).items() if name != "simple_form"}
    return value
