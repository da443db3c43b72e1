"""Groups runs by the settings in which they differ, or by named settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsl.simulations.reports.differing_settings import Words, common, differing_numbers, labels
from fsl.simulations.reports.measures import Measure, value_of
from fsl.simulations.reports.run_records import RunRecord
from fsl.simulations.reports.spreads import Spread

from fsl.errors import ConfigError

Settings = Mapping[str, Any]


class Figure:
    """Takes a number of a run: its sum, its value in the last round that has it, or the best of all rounds."""

    def __init__(self, key: str, best: bool = False):
        self.key, self.best = key, best

    def __call__(self, record: RunRecord) -> float | None:
        """Returns this run's number; None where it was never measured."""
        return value_of(record.rows, self.key, self.best)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed (and in settings that do not divide groups), in order of seed.

    `counted` go into means; `diverged`, `unfinished` and `repeated` (same seed, same settings, same name and tags) runs
    do not. `twins` has, by folder, for each repeated run the one that counts instead.
    """

    label: str
    shown: Mapping[str, str]  # the settings that distinguish it from other groups
    numbers: Mapping[str, Any] = field(default_factory=dict)  # the same with full numbers
    settings: Settings = field(default_factory=dict)  # all settings by which its runs were grouped
    counted: tuple[RunRecord, ...] = ()
    diverged: tuple[RunRecord, ...] = ()
    unfinished: tuple[RunRecord, ...] = ()
    repeated: tuple[RunRecord, ...] = ()
    twins: Mapping[Path, RunRecord] = field(default_factory=dict)
    called: bool = False  # whether a user gave it its label

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All runs of the group."""
        return self.counted + self.diverged + self.unfinished + self.repeated

    @property
    def curves(self) -> tuple[RunRecord, ...]:
        """The runs whose curves to draw: the counted ones, else the unfinished ones."""
        return self.counted or self.unfinished

    def spread(self, of: Figure) -> Spread | None:
        """Returns the spread of a number over the counted runs."""
        return Spread.of((of(record) for record in self.counted), Measure(of.key).kind)


@dataclass(frozen=True)
class Grouping:
    """Groups, with the settings that all runs share, and those that differ within groups."""

    groups: tuple[Group, ...]
    shared: Mapping[str, str]
    averaged: Mapping[str, tuple[str, ...]]
    uneven: bool  # whether groups have different mixes of settings that differ within them


def settings_of(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Returns what may divide each run: its settings, its name and tags, and its number of rounds."""
    with_extras = all(record.extras is not None for record in records)  # else they would divide equal runs
    tags = dict.fromkeys(key for record in records for key in record.named)
    return [
        {
            **((record.extras if with_extras else None) or {}),
            **record.settings,
            **{key: record.named.get(key) for key in tags},
            "rounds": record.rounds,
        }
        for record in records
    ]


def grouped(records: Sequence[RunRecord], by: Sequence[str] | None = None) -> Grouping:
    """Group runs by all their settings except the seed, or by the settings `by` alone (whole keys)."""
    settings = settings_of(records)
    wholes = _distinct(settings)
    kinds = wholes if by is None else _distinct([_only(each, by) for each in settings])
    members: list[list[RunRecord]] = [[] for _ in kinds]
    for record, each in zip(records, settings):
        members[kinds.index(each if by is None else _only(each, by))].append(record)
    whole = {record.folder: wholes.index(each) for record, each in zip(records, settings)}
    words, numbers = Words(kinds), differing_numbers(kinds)
    groups = tuple(
        _group(label, words.values(kind, keys), shown, kind, runs, whole)
        for label, keys, shown, kind, runs in zip(labels(kinds), words.telling(), numbers, kinds, members)
    )
    averaged, uneven = ({}, False) if by is None else _averaged(wholes, by, kinds)
    return Grouping(groups, common(wholes), averaged, uneven)


def whole_key(text: str, settings: Sequence[Settings], option: str) -> str:
    """Find a setting's whole key by its last part; ConfigError where no setting, or several, match."""
    keys = list(dict.fromkeys(key for each in settings for key in each))
    if text in keys:
        return text
    found = [key for key in keys if key.endswith(f".{text}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{option} {text}: {len(found)} settings are called so; give one whole: {', '.join(found)}")
    known = ", ".join(varied(settings)) or "none but the seed"
    raise ConfigError(f"{option} {text}: no run has this setting, name or tag; those that differ are: {known}")


def texts_of(settings: Sequence[Settings]) -> list[tuple[str, str]]:
    """Returns each setting with each of its values, as a report writes them."""
    words = Words(_distinct(settings))
    return list(
        dict.fromkeys(
            (words.name(key), words.value(key, each[key])) for each in settings for key in words.keys if key in each
        )
    )


def varied(settings: Sequence[Settings]) -> list[str]:
    """List the settings in which runs differ, by whole keys; an option of one strategy only if it differs there."""
    return list(dict.fromkeys(key for keys in Words(_distinct(settings)).telling() for key in keys.values()))


def _only(settings: Settings, keys: Sequence[str]) -> dict[str, Any]:
    return {key: settings[key] for key in keys if key in settings}


def _distinct(settings: Sequence[Settings]) -> list[Settings]:
    found: list[Settings] = []
    for each in settings:
        if each not in found:
            found.append(each)
    return found


def _averaged(
    wholes: Sequence[Settings], by: Sequence[str], kinds: Sequence[Settings]
) -> tuple[dict[str, tuple[str, ...]], bool]:
    """Returns the settings that differ within groups, with values, and whether groups have the same mix of them."""
    words = Words(wholes)
    within = [[whole for whole in wholes if _only(whole, by) == kind] for kind in kinds]
    keys = [key for key in varied(wholes) if key not in by and any(words.differs(key, members) for members in within)]
    mixes = [
        sorted({" ".join(words.value(key, each[key]) if key in each else "-" for key in keys) for each in members})
        for members in within
    ]
    values = {
        words.name(key): tuple(dict.fromkeys(words.value(key, each[key]) for each in wholes if key in each))
        for key in keys
    }
    return values, any(mix != mixes[0] for mix in mixes)


def _group(
    label: str,
    shown: Mapping[str, str],
    numbers: Mapping[str, Any],
    settings: Settings,
    records: Sequence[RunRecord],
    whole: Mapping[Path, int],
) -> Group:
    parts: dict[str, list[RunRecord]] = {"counted": [], "diverged": [], "unfinished": [], "repeated": []}
    first: dict[tuple[Any, int], RunRecord] = {}
    twins = {}
    # Of runs with one seed the newest finished one counts: they are equal, or differ in something unrecorded.
    for record in sorted(records, key=lambda r: (r.finished, r.written), reverse=True):
        same = first.setdefault((record.seed, whole[record.folder]), record)
        if same is not record and record.seed is not None:
            twins[record.folder] = same
            parts["repeated"].append(record)
        else:
            parts["counted" if record.state == "finished" else record.state].append(record)
    for runs in parts.values():
        runs.sort(key=lambda r: (r.seed is None, r.seed or 0))
    return Group(
        label,
        shown,
        numbers,
        settings,
        counted=tuple(parts["counted"]),
        diverged=tuple(parts["diverged"]),
        unfinished=tuple(parts["unfinished"]),
        repeated=tuple(parts["repeated"]),
        twins=twins,
    )
