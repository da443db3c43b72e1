"""Checks Hydra overrides before they go to a federation, by composing them like `fsl-simulate`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fsl.simulations.error_lines import with_choices
from fsl.simulations.one_run import check_resume
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, open_dict

from fsl.errors import ConfigError
from fsl.importing.building import build
from fsl.quoting import override_value
from fsl.run.config import (
    RunConfig,
    build_aggregator,
    build_availability,
    build_backend,
    build_memory,
    build_objective,
    build_optimizer,
    build_privacy,
    build_selection,
    build_trackers,
    read_config,
)
from fsl.settings.taking_part import refuse_simulated


@dataclass(frozen=True)
class Checked:
    """Valid overrides, their composed configuration, and the folder for results."""

    overrides: list[str]
    config: RunConfig
    folder: Path


def for_federation(overrides: Sequence[str], edges: int, devices: int) -> Checked:
    """Check overrides for a federation; fills in its counts where none are given, and makes paths absolute.

    ConfigError, or an exception of Hydra or OmegaConf, for a mistake; `error_lines.one_line` makes it a line.
    """
    counts = {"edges": edges, "devices": devices}
    given = {text.partition("=")[0] for text in overrides}
    checked = check_overrides([*(f"{name}={count}" for name, count in counts.items() if name not in given), *overrides])
    for name, count in counts.items():
        if not 1 <= getattr(checked.config.training, name) <= count:
            raise ConfigError(f"{name}={getattr(checked.config.training, name)}: this federation has {count}")
    paths = {"resume": checked.config.resume, "init_from": checked.config.init_from}
    kept = [text for text in checked.overrides if text.partition("=")[0] not in (*paths, "hydra.run.dir")]
    kept += [f"{name}={override_value(str(Path(path).absolute()))}" for name, path in paths.items() if path is not None]
    return replace(checked, overrides=kept)


def for_superlink(overrides: Sequence[str]) -> Checked:
    """Check overrides for a SuperLink that may be on another machine: their names and types, and no more.

    The folder for results is made absolute. Exceptions as `for_federation`.
    """
    overrides = with_choices(overrides)
    composed, folder = _composed(overrides)
    top = read_config(composed)
    folder = folder.absolute()
    kept = [text for text in overrides if text.lstrip("+").partition("=")[0] not in ("resume", "hydra.run.dir")]
    if top.resume is not None:
        kept.append(f"resume={override_value(str(Path(top.resume).absolute()))}")
    return Checked(kept, top, folder)


def check_overrides(overrides: Sequence[str]) -> Checked:
    """Compose the configuration and build all that needs no data."""
    overrides = with_choices(overrides)
    composed, folder = _composed(overrides)
    top = read_config(composed)
    check_resume(top.resume)
    build("strategy", top.strategy)
    build("partition", top.partition)
    build_objective(top.objective)
    build_optimizer(top.optimizer)
    build_aggregator(top.aggregator)
    refuse_simulated(top.training, build_selection(top.selection), build_availability(top.availability))
    build_backend(top.backend)
    build_trackers(top.trackers)
    build_privacy(top.privacy)
    build_memory(top.memory)
    for group in ("device", "edge", "link"):
        build(group, getattr(top, group))
    return Checked(list(overrides), top, folder.absolute())


def _composed(overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    with initialize_config_module("fsl.configs", version_base="1.3"):
        composed = compose("config", overrides=list(overrides), return_hydra_config=True)
    folder = Path(composed.hydra.run.dir)
    with open_dict(composed):
        del composed["hydra"]
    return composed, folder
