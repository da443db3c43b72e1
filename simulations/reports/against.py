"""Computes a metric against a setting: one series of points for each group of otherwise equal runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsl.simulations.reports.differing_settings import Words, differing, labels
from fsl.simulations.reports.groups import Figure, Group, grouped, settings_of, varied, whole_key
from fsl.simulations.reports.measures import is_number
from fsl.simulations.reports.run_records import RunRecord
from fsl.simulations.reports.spreads import Spread

from fsl.errors import ConfigError

_FAR = 10  # ratio of largest to smallest positive value from which an axis is logarithmic


@dataclass(frozen=True)
class Point:
    """Results of runs with one value of the setting; `x` is that value where all are numbers, else its index."""

    x: float
    text: str
    value: Any
    values: tuple[float, ...]
    spread: Spread


@dataclass(frozen=True)
class Series:
    """The points of runs that differ only in the setting (and in settings that do not divide groups)."""

    label: str
    shown: Mapping[str, str]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Response:
    """A metric over the values of a setting."""

    setting: str
    metric: str
    series: tuple[Series, ...]
    numeric: bool
    remark: str = ""

    @property
    def points(self) -> list[Point]:
        """All points of all series."""
        return [point for series in self.series for point in series.points]

    @property
    def logarithmic(self) -> bool:
        """True where the setting's values lie on a logarithmic axis."""
        xs = [point.x for point in self.points]
        return self.numeric and min(xs) > 0 and max(xs) >= _FAR * min(xs)


def respond(records: Sequence[RunRecord], setting: str, metric: str, by: Sequence[str] | None) -> Response:
    """Compute the metric against a setting, name or tag; ConfigError where counted runs do not differ in it."""
    settings = settings_of(records)
    key = whole_key(setting, settings, "--against")
    # A sub-option of the setting (strategy.phi) would make a series for each of its values.
    named = list(dict.fromkeys(name for each in settings for name in each)) if by is None else by
    grouping = grouped(records, [*(n for n in named if n != key and not n.startswith(f"{key}.")), key])
    groups = grouping.groups
    known = [g for g in groups if key in g.settings and g.spread(Figure(metric)) is not None]
    values = list({repr(g.settings[key]): g.settings[key] for g in known}.values())
    if len(values) < 2:
        which = f"has the value {values[0]} in all runs" if values else "has no value in runs"
        differ = ", ".join(name for name in varied(settings) if name != key) or "none but the seed"
        raise ConfigError(
            f"--against {setting}: it {which} with a number of {metric}; settings that differ are: {differ}"
        )
    words = Words(settings)
    rest = [{name: value for name, value in g.settings.items() if name != key} for g in known]
    kinds = [each for i, each in enumerate(rest) if each not in rest[:i]]
    numbers = [_number(value) for value in values]
    numeric = all(number is not None for number in numbers)
    series = []
    for label, shown, kind in zip(_labels(kinds), differing(kinds), kinds):
        points = []
        for group, other in zip(known, rest):
            if other == kind:
                value = group.settings[key]
                x = _number(value) if numeric else None
                text = words.value(key, value)
                points.append(_point(group, metric, float(values.index(value)) if x is None else x, text, value))
        series.append(Series(label, shown, tuple(sorted(points, key=lambda point: point.x))))
    name = words.name(key)
    return Response(name, metric, tuple(series), numeric, _remark(groups, key, name, grouping.averaged))


def _remark(groups: Sequence[Group], key: str, name: str, averaged: Mapping[str, Sequence[str]]) -> str:
    """Returns the remark on runs left out, and on settings that means average over."""
    said = []
    left = sum(len(g.runs) for g in groups if key not in g.settings)
    if left:
        said.append(
            f"{left} run{' has' if left == 1 else 's have'} no {name}, and {'is' if left == 1 else 'are'} left out."
        )
    if averaged:
        over = "; ".join(f"{other} ({', '.join(values)})" for other, values in averaged.items())
        said.append(f"Against {name}, means are over what else differs, too: {over}.")
    return " ".join(said)


def _labels(kinds: Sequence[Mapping[str, Any]]) -> list[str]:
    return labels(kinds) if len(kinds) > 1 else ["all runs"]


def _point(group: Group, metric: str, x: float, text: str, value: Any) -> Point:
    figure = Figure(metric)
    spread = group.spread(figure)
    assert spread is not None  # respond takes no other groups
    values = tuple(found for run in group.counted if (found := figure(run)) is not None)
    return Point(x, text, value, values, spread)


def _number(value: Any) -> float | None:
    """Returns a setting's value, or a tag's text, as a number; None if it is none."""
    if is_number(value):
        return float(value)
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None
