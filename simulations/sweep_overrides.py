"""The overrides of a sweep that goes on: those it began with, from the `multirun.yaml` that Hydra wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fsl.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class _Stored:
    """The overrides that a sweep began with, its own and Hydra's."""

    task: list[str]
    hydra: list[str]


def quoted(value: str) -> str:
    """Any text as the value of an override."""
    return QuotedString(value, Quote.single).with_quotes()


def resumed_folder(overrides: Sequence[str]) -> Path | None:
    """The sweep that `resume=` names, None if there is none."""
    for override in _parsed(overrides):
        if override.get_key_element() != "resume":
            continue
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: one sweep can be gone on with at a time")
        value = override.value()
        if value is None:
            return None
        folder = Path(str(value))
        if not (folder / "multirun.yaml").exists():
            raise ConfigError(
                f"resume={folder}: there is no sweep in it (no multirun.yaml); -m resume=<folder> takes the folder of "
                "a sweep, resume=<folder> without -m that of a run"
            )
        return folder
    return None


def continued(folder: Path, given: Sequence[str]) -> list[str]:
    """The overrides to go on with: the sweep's own, and Hydra's, of which those for the launcher may be new.

    ConfigError where what is given besides disagrees with what the sweep began with.
    """
    stored = _read(folder)
    before = {override.get_key_element(): override for override in _parsed([*stored.task, *stored.hydra])}
    for override in before.values():
        if getattr(override.value(), "shuffle", False):
            raise ConfigError(
                f"resume={folder}: {override.input_line} would give the jobs other numbers; start a new sweep"
            )
    launcher: list[str] = []
    for override in _parsed(given):
        key = override.get_key_element()
        if key == "resume" or key == "hydra.mode":
            continue
        if key == "hydra/launcher" or key.startswith("hydra.launcher."):
            launcher.append(str(override.input_line))
            continue
        if key not in before:
            raise ConfigError(
                f"resume={folder}: that sweep was not given {override.input_line}; leave it out, or start a new sweep"
            )
        if _value(before[key]) != _value(override):
            raise ConfigError(
                f"resume={folder}: that sweep has {before[key].input_line}, not {override.input_line}; leave it out, "
                "or start a new sweep"
            )
    new_launcher = any(line.startswith("hydra/launcher=") for line in launcher)
    kept = [
        line
        for line in stored.hydra
        if not line.startswith(("hydra.mode=", "hydra.sweep.dir="))
        and not (new_launcher and line.startswith(("hydra/launcher=", "hydra.launcher.")))
        and line.partition("=")[0] not in {other.partition("=")[0] for other in launcher}
    ]
    return [*stored.task, *kept, *launcher]


def _read(folder: Path) -> _Stored:
    path = folder / "multirun.yaml"
    try:
        overrides = OmegaConf.load(path).hydra.overrides
        return _Stored([str(line) for line in overrides.task], [str(line) for line in overrides.hydra])
    except (OSError, AttributeError, TypeError, OmegaConfBaseException, YAMLError) as error:
        raise CheckpointError(f"{path} is damaged ({' '.join(str(error).split())}); start a new sweep") from None


def _parsed(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def _value(override: Override) -> str:
    return override.get_value_string().replace(" ", "")
