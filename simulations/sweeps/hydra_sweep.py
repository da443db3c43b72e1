"""Runs Hydra by its parts: a sweep, whose folder and jobs are known before the first job begins, or one run.

`hydra.main` returns nothing of a sweep and ends it with the first job that fails, and it composes a run's configuration
twice; so this module repeats its work. With `config_loaders`, no other file uses Hydra's internals (hydra-core 1.3).
"""

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fsl.simulations.sweeps.config_loaders import JobLoader
from fsl.simulations.sweeps.jobs import BASIC_SWEEPER
from hydra import version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fsl.errors import ConfigError
from fsl.quoting import override_value


@dataclass(frozen=True)
class SweepArguments:
    """The command line of a sweep. `flags` are the options of Hydra that resuming it needs again."""

    overrides: Sequence[str]
    config_dir: str | None = None
    config_name: str = "config"

    @property
    def flags(self) -> list[str]:
        """Hydra's options as typed."""
        found = ["--config-dir", self.config_dir] if self.config_dir is not None else []
        return found + (["--config-name", self.config_name] if self.config_name != "config" else [])


_OTHER_TASKS = ("help", "hydra_help", "version", "cfg", "info", "shell_completion", "experimental_rerun")


def is_sweep(arguments: Sequence[str]) -> bool:
    """Returns whether a command line asks for a sweep (and not, say, for --help)."""
    options = _parse(arguments)
    asked = options.multirun or "hydra.mode=MULTIRUN" in options.overrides
    return asked and not options.run and not any(getattr(options, name, None) for name in _OTHER_TASKS)


def is_run(arguments: Sequence[str]) -> bool:
    """Returns whether a command line asks for one run, by nothing but overrides and where configurations are."""
    options = _parse(arguments)
    other = any(getattr(options, name, None) for name in (*_OTHER_TASKS, "multirun", "config_path"))
    return not other and not any(override.startswith("hydra.mode=") for override in options.overrides)


def run_once(arguments: Sequence[str], job: TaskFunction) -> None:
    """Run the one job of a command line."""
    options = read_arguments(arguments)
    with _opened(options, "fsl_simulate") as hydra:
        hydra.run(options.config_name, job, [*options.overrides, "hydra.mode=RUN"])


def read_arguments(arguments: Sequence[str]) -> SweepArguments:
    """Parse the command line of a sweep."""
    options = _parse(arguments)
    return SweepArguments(options.overrides, options.config_dir, options.config_name or "config")


class HydraSweep:
    """A sweep, composed by Hydra."""

    def __init__(self, hydra: Hydra, options: SweepArguments):
        self._hydra = hydra
        self._options = options
        config = hydra.compose_config(
            config_name=options.config_name,
            overrides=list(options.overrides),
            run_mode=RunMode.MULTIRUN,
            with_log_configuration=False,
        )
        raw = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        self.named_by_time = isinstance(raw, dict) and "${now:" in str(raw["dir"])
        self.folder = Path(config.hydra.sweep.dir)
        self.jobs = self._jobs(config)
        self._joblib = "joblib" in config.hydra.launcher._target_

    def run(self, job: TaskFunction, folder: Path) -> None:
        """Run the jobs in this folder."""
        try:
            self._hydra.multirun(
                config_name=self._options.config_name,
                task_function=job,
                overrides=[
                    *self._options.overrides,
                    "hydra.mode=MULTIRUN",
                    f"hydra.sweep.dir={override_value(str(folder))}",
                ],
            )
        finally:
            if self._joblib:  # else its workers would wait for another sweep in this folder
                from joblib.externals.loky import get_reusable_executor

                get_reusable_executor().shutdown(kill_workers=True)

    def _jobs(self, config: DictConfig) -> list[list[str]]:
        """Returns each job's overrides, in order; empty under a sweeper that decides on the way."""
        sweeper = config.hydra.sweeper
        if sweeper._target_ != BASIC_SWEEPER:
            return []
        given = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        parser = OverridesParser.create(config_loader=self._hydra.config_loader)
        overrides = parser.parse_overrides([*given, *config.hydra.overrides.task])
        return [list(job) for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]


@contextmanager
def open_hydra(options: SweepArguments) -> Iterator[HydraSweep]:
    """Open Hydra with fsl's configurations, and those of `--config-dir`."""
    with _opened(options, "run") as hydra:
        yield HydraSweep(hydra, options)


@contextmanager
def _opened(options: SweepArguments, task_name: str) -> Iterator[Hydra]:
    version.setbase("1.3")
    path = create_automatic_config_search_path(None, None, "pkg://fsl.configs")
    if options.config_dir is not None:
        from hydra.core.config_search_path import SearchPathQuery

        where = f"file://{os.path.abspath(options.config_dir)}"
        path.prepend(provider="command-line", path=where, anchor=SearchPathQuery(provider="schema"))
    hydra = Hydra(task_name=task_name, config_loader=JobLoader(config_search_path=path))
    GlobalHydra.instance().initialize(hydra)
    try:
        yield hydra
    finally:
        GlobalHydra.instance().clear()


def in_order(arguments: Sequence[str]) -> list[str]:
    """Sort arguments for Hydra's parser: overrides first, options after them.

    ConfigError for an unknown option, where that parser would print its usage.
    """
    overrides = list(_parse(arguments).overrides)
    rest = list(arguments)
    for override in overrides:
        rest.remove(override)
    return [*overrides, *(one for one in rest if one != "--")]


def _parse(arguments: Sequence[str]) -> Any:
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    options: Namespace = parser.parse_intermixed_args(list(arguments))
    return options


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see fsl-simulate --help")
