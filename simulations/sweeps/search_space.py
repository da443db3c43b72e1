"""Reads the space of a search: Hydra's sweep syntax as Optuna's distributions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fsl.errors import ConfigError


@dataclass(frozen=True)
class Space:
    """The space of a search: `fixed` overrides apply to every trial; `parameters` are drawn, each by its key."""

    fixed: list[str]
    parameters: dict[str, BaseDistribution]
    lists: dict[str, list[Any]]  # all values of the parameters that have finitely many

    def overrides(self, parameters: Mapping[str, Any]) -> list[str]:
        """Returns the overrides of a trial with these parameters."""
        return [*self.fixed, *(f"{key}={value}" for key, value in parameters.items())]

    def grid(self) -> list[dict[str, Any]]:
        """List every combination; ConfigError where a parameter has no list of values."""
        for key in self.parameters:
            if key not in self.lists:
                raise ConfigError(f"{key} is drawn from an interval, which has no grid; use choice(...) or range(...)")
        return [dict(zip(self.lists, values)) for values in product(*self.lists.values())]


def read_space(overrides: Sequence[str]) -> Space:
    """Sort overrides into fixed and searched ones; ConfigError for one that is neither."""
    space = Space([], {}, {})
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        line, key = str(override.input_line), override.get_key_element()
        if override.is_hydra_override() and key != "hydra.searchpath":
            raise ConfigError(f"{line}: a search has no launcher or folders of Hydra's; see fsl-search --help")
        if key == "resume":
            raise ConfigError(f"{line}: a search goes on with --study FOLDER")
        if not override.is_sweep_override():
            space.fixed.append(line)
            continue
        if key in space.parameters:
            raise ConfigError(f"{line}: {key} is given twice; leave one out")
        space.parameters[key], values = _distribution(override)
        if values is not None:
            space.lists[key] = values
    if not space.parameters:
        raise ConfigError(
            "there is nothing to search; give at least one key with a choice, such as "
            "optimizer.lr='tag(log, interval(1e-4, 1e-1))', local_epochs='range(1, 4)' or batch_size=8,16,32"
        )
    return space


def _distribution(override: Override) -> tuple[BaseDistribution, list[Any] | None]:
    sweep, line = override.value(), str(override.input_line)
    try:
        if isinstance(sweep, IntervalSweep):
            return _interval(sweep), None
        if isinstance(sweep, RangeSweep):
            return _range(replace(sweep, shuffle=False), line)
        if isinstance(sweep, ChoiceSweep):
            sweep.shuffle = False  # a resumed grid must have the same order
            values = list(dict.fromkeys(override.sweep_string_iterator()))
            return CategoricalDistribution(values), values
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{line}: {error}") from None
    raise ConfigError(f"{line}: a search knows choice(...), range(...), interval(...) and lists such as 1,2,3")


def _interval(sweep: IntervalSweep) -> BaseDistribution:
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low or 0), float(high or 0), log=log)


def _range(sweep: RangeSweep, line: str) -> tuple[BaseDistribution, list[Any]]:
    values = sorted(sweep.range())
    if not values:
        raise ConfigError(f"{line}: the range is empty; its end, which is not part of it, must lie beyond its start")
    log, step, whole = "log" in sweep.tags, abs(sweep.step), all(isinstance(value, int) for value in values)
    if log and not (whole and step == 1):
        raise ConfigError(f"{line}: a logarithmic range has whole numbers and steps of 1; use tag(log, interval(...))")
    if whole:
        return IntDistribution(values[0], values[-1], log=log, step=int(step)), values
    return FloatDistribution(values[0], values[-1], step=float(step)), values
