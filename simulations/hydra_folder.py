"""Writes Hydra's `.hydra` into a run's folder once there is a run, and removes traces of refused commands.

Hydra itself writes before fsl has checked the command, and so over its files of an earlier run.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException

from fsl.faults import TRACEBACK
from fsl.files import write_text
from fsl.run.observers import Observer, RunInfo
from fsl.run.run_folder import RunFolder
from fsl.run.run_log import RUN_LOG

HYDRA = ".hydra"


class _Dumper(yaml.CDumper if yaml.__with_libyaml__ else yaml.Dumper):  # type: ignore[misc]
    """Writes YAML as OmegaConf does, by libyaml where it is installed: in less than half the time."""


_Dumper.add_representer(str, get_omega_conf_dumper().str_representer)


def to_yaml(config: Any) -> str:
    """Returns what `OmegaConf.to_yaml` does of a configuration, sooner."""
    values = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    text: str = yaml.dump(values, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=_Dumper)
    return text


class Composed(Observer):
    """Writes a run's composed configuration into `.hydra` of its folder when it begins, never when it resumes."""

    def __init__(self, config: DictConfig, overrides: Sequence[Any], hydra: Any = None):
        texts = {"config.yaml": config, "overrides.yaml": OmegaConf.create(list(overrides)), "hydra.yaml": hydra}
        # Read now, since a sweep sets resume= in a job's configuration.
        self._texts = {name: to_yaml(value) for name, value in texts.items() if value is not None}
        self.begun = False

    @classmethod
    def by_hydra(cls, config: DictConfig) -> "Composed":
        """Make one for the job that Hydra runs now."""
        overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        return cls(config, overrides, HydraConfig.instance().cfg)

    def on_start(self, info: RunInfo) -> None:
        """Write `.hydra`, once the run has its folder."""
        self.begun = True
        if info.first_round == 1 and info.folder is not None:
            self.write(info.folder)

    def keep(self, folder: Path) -> None:
        """Write `.hydra` for a run that failed before it began, so that reports name it; touches no other run's."""
        if folder.is_dir() and not (folder / HYDRA).exists() and not RunFolder(folder).is_used:
            with suppress(OSError):  # the failure itself is more important
                self.write(folder)

    def write(self, folder: Path) -> None:
        """Write `.hydra` into a folder."""
        (folder / HYDRA).mkdir(parents=True, exist_ok=True)
        for name, text in self._texts.items():
            write_text(folder / HYDRA / name, text)


class FederationConfig(Observer):
    """Keeps the composed configuration of a real federation's run in its folder, for fsl-export."""

    def __init__(self, config: DictConfig):
        self._text = to_yaml(config)

    def on_start(self, info: RunInfo) -> None:
        """Write it once the run has its folder."""
        if info.first_round == 1 and info.folder is not None:
            write_text(RunFolder(info.folder).federation_config, self._text)


@dataclass
class Before:
    """A folder before a command: the missing folders on its way, and the length of its log."""

    folder: Path
    missing: tuple[Path, ...]
    log_size: int | None

    @classmethod
    def of(cls, folder: Path) -> "Before":
        """Record the folder's present state."""
        folder = folder.absolute()
        missing = tuple(path for path in (folder, *folder.parents) if not path.exists())
        log = folder / RUN_LOG
        return cls(folder, missing, log.stat().st_size if log.is_file() else None)

    def put_back(self, refused: bool) -> None:
        """Clean up after a run that never began: remove empty folders, and the log of a `refused` one."""
        log = self.folder / RUN_LOG
        with suppress(OSError):
            if refused and self.log_size is not None:
                os.truncate(log, self.log_size)
            elif refused and not (self.folder / TRACEBACK).exists():
                log.unlink(missing_ok=True)
            for path in self.missing:  # innermost first; a folder with contents stays
                path.rmdir()


class Folders(Callback):
    """Records the state before Hydra makes a run's folder."""

    before: Before | None = None  # of the present command

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record the folder's state; Hydra calls this just before it makes the folder."""
        Folders.before = None
        earlier: Any = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)  # the folder's name may refer to it
        try:
            with suppress(OmegaConfBaseException, OSError):
                Folders.before = Before.of(Path(str(OmegaConf.select(config, "hydra.run.dir"))))
        finally:
            HydraConfig.instance().cfg = earlier
