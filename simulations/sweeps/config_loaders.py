"""Composes the configurations of a sweep's jobs: those that differ in values alone share one composition.

Hydra reads and merges the files of all groups anew for every job, twice: to check the job, and to run it. This module
repeats the end of its work, where values go into what is composed (hydra-core 1.3).
"""

import copy
import pickle
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

_KEPT = 100  # compositions


class JobLoader(ConfigLoaderImpl):
    """Loads configurations as Hydra does, and composes what jobs with the same choices of groups share once."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Returns a job's configuration, which is nobody else's."""
        parsed = OverridesParser.create().parse_overrides(overrides=sweep_overrides)
        values = [override for override in parsed if self._is_value(override)]
        others = [override for override in parsed if not self._is_value(override)]
        if master_config.hydra.searchpath or any(_is_special(override) for override in others):
            return super().load_sweep_config(master_config, sweep_overrides)
        config = self._composed(master_config, [str(override.input_line) for override in others])
        self._apply_overrides_to_config(values, config)
        self._note(config, parsed)
        return config

    def _is_value(self, override: Override) -> bool:
        """Returns whether an override sets a value of the task, and so chooses no file that is read."""
        key = override.key_or_group
        special = override.is_hydra_override() or override.is_sweep_override() or override.package is not None
        return not special and not self.repository.group_exists(key)

    def _composed(self, master_config: DictConfig, overrides: list[str]) -> DictConfig:
        kept: dict[tuple[str, ...], bytes | DictConfig] = self.__dict__.setdefault("_kept", {})
        if (key := tuple(overrides)) not in kept:
            if len(kept) >= _KEPT:
                kept.clear()
            kept[key] = _packed(super().load_sweep_config(master_config, overrides))
        found = kept[key]
        config: DictConfig = pickle.loads(found) if isinstance(found, bytes) else copy.deepcopy(found)
        return config

    @staticmethod
    def _note(config: DictConfig, overrides: Sequence[Override]) -> None:
        """Write into a job's configuration which overrides made it."""
        task = [override for override in overrides if not override.is_hydra_override()]
        name = config.hydra.job.config.override_dirname
        config.hydra.overrides.task = [override.input_line for override in task]
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=task, kv_sep=name.kv_sep, item_sep=name.item_sep, exclude_keys=name.exclude_keys
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is kept behind, where a launcher sends this to another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}


def _packed(config: DictConfig) -> bytes | DictConfig:
    """Returns a configuration as bytes, which are unpacked in a sixth of the time of a deep copy, where it can be.

    Hydra executes a plugin's module anew where plugins are looked for again, and then its classes are no longer those
    by which they are named.
    """
    try:
        return pickle.dumps(config)
    except pickle.PicklingError:
        return config


def _is_special(override: Override) -> bool:
    """Returns whether an override's place among the others counts, or its value is several."""
    return override.is_sweep_override() or isinstance(override.value(), dict)
