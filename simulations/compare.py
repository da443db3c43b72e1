"""Runs compared: groups by what differs, means and spreads over seeds, and what a target accuracy costs."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from fsl.simulations.records import Record
from fsl.simulations.settings import common, differing, labels

from fsl.errors import ConfigError

_BYTES = ("up_bytes", "down_bytes", "model_bytes")


@dataclass(frozen=True)
class Spread:
    """A mean over so many values, their sample standard deviation, and half of the mean's 95 % interval (Student's t).

    One value has no spread: `std` and `ci95` are None.
    """

    count: int
    mean: float
    std: float | None = None
    ci95: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Of what is known and finite; None if nothing is."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        if len(known) < 2:
            return cls(1, known[0]) if known else None
        from scipy.stats import t  # a second to import

        std = stdev(known)
        half = float(t.ppf(0.975, len(known) - 1)) * std / math.sqrt(len(known))
        return cls(len(known), fmean(known), std, half)


@dataclass(frozen=True)
class Cost:
    """What it took to reach the target: up to and with the first evaluated round that reached it."""

    rounds: int
    bytes: float
    sim_seconds: float | None


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, in order of seed.

    `counted` go into means; `diverged`, `unfinished` and `repeated` (same seed, same settings) runs do not.
    """

    label: str
    shown: Mapping[str, str]  # the settings that tell it from the other groups
    counted: tuple[Record, ...] = ()
    diverged: tuple[Record, ...] = ()
    unfinished: tuple[Record, ...] = ()
    repeated: tuple[Record, ...] = ()

    @property
    def runs(self) -> tuple[Record, ...]:
        """All of them."""
        return self.counted + self.diverged + self.unfinished + self.repeated

    @property
    def curves(self) -> tuple[Record, ...]:
        """The runs whose curves are drawn: those counted, else those under way."""
        return self.counted or self.unfinished

    def spread(self, of: "Figure") -> Spread | None:
        """A figure over the counted runs."""
        return Spread.of(of(record) for record in self.counted)


@dataclass(frozen=True)
class Paired:
    """How far a group is from the baseline, seed by seed: the differences of the final accuracy."""

    label: str
    baseline: str
    seeds: tuple[int, ...]
    difference: Spread


@dataclass(frozen=True)
class Comparison:
    """Everything a report says, but for its form."""

    groups: tuple[Group, ...]
    shared: Mapping[str, str]  # settings that are equal in all runs
    metric: str  # accuracy, or loss where no run has an accuracy
    target: float | None
    target_reason: str
    paired: tuple[Paired, ...] = ()
    idle: tuple[Record, ...] = ()
    unreadable: tuple[str, ...] = ()
    costs: Mapping[str, tuple[Cost, ...]] = field(default_factory=dict)  # by label: of the runs that reached it


class Figure:
    """A number of a run: the value of a metric in its last evaluated round, or the best of all rounds."""

    def __init__(self, key: str, best: bool = False):
        self.key, self.best = key, best

    def __call__(self, record: Record) -> float | None:
        """Of this run; None where it was never measured."""
        values = [row[self.key] for row in record.rows if row.get(self.key) is not None]
        if not values:
            return None
        if not self.best:
            return float(values[-1])
        return float(min(values) if self.key.endswith("loss") else max(values))


def total(record: Record, *keys: str) -> float | None:
    """The sum over all rounds; None where nothing was measured."""
    values = [row[key] for row in record.rows for key in keys if row.get(key) is not None]
    return float(sum(values)) if values else None


def compare(
    records: Sequence[Record],
    target: float | None = None,
    baseline: str | None = None,
    idle: Sequence[Record] = (),
    unreadable: Sequence[str] = (),
) -> Comparison:
    """Group runs by what differs, and work out what there is to say.

    `target`: an accuracy in (0, 1]; by default the highest whole percent that every counted run reaches. `baseline`: a
    part of the label of the group that others are compared with; the first by default. ConfigError for a target or
    baseline that cannot be.
    """
    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target {target}: an accuracy lies in (0, 1]; 0.8 is 80 %")
    groups, shared = _groups(records)
    accuracy = any(row.get("accuracy") is not None for record in records for row in record.rows)
    metric = "accuracy" if accuracy else "loss"
    chosen, reason = _target(groups, target) if accuracy else (None, "no run has an accuracy, so there is no target")
    first = _baseline(groups, baseline)
    costs = {
        group.label: tuple(cost for run in group.counted if (cost := reaching(run, chosen)) is not None)
        for group in groups
        if chosen is not None
    }
    paired = tuple(_paired(groups, first)) if accuracy else ()
    return Comparison(groups, shared, metric, chosen, reason, paired, tuple(idle), tuple(unreadable), costs)


def reaching(record: Record, target: float) -> Cost | None:
    """What a run took to reach the target; None if it never did."""
    for i, row in enumerate(record.rows):
        if row.get("accuracy") is not None and row["accuracy"] >= target:
            sent = sum(row.get(key) or 0 for row in record.rows[: i + 1] for key in _BYTES)
            seconds = [row.get("sim_seconds") for row in record.rows[: i + 1]]
            return Cost(row["round"], sent, None if None in seconds else sum(s for s in seconds if s is not None))
    return None


def _groups(records: Sequence[Record]) -> tuple[tuple[Group, ...], dict[str, str]]:
    with_extras = all(record.extras is not None for record in records)  # else they would part equal runs
    members: list[tuple[dict[str, Any], list[Record]]] = []
    for record in records:
        settings = {**((record.extras if with_extras else None) or {}), **record.settings, "rounds": record.rounds}
        same = next((runs for known, runs in members if known == settings), None)
        if same is None:
            members.append((settings, [record]))
        else:
            same.append(record)
    kinds = [settings for settings, _ in members]
    named = zip(labels(kinds), differing(kinds), members)
    return tuple(_group(label, shown, runs) for label, shown, (_, runs) in named), common(kinds)


def _group(label: str, shown: Mapping[str, str], records: Sequence[Record]) -> Group:
    parts: dict[str, list[Record]] = {"counted": [], "diverged": [], "unfinished": [], "repeated": []}
    seen = set()
    # Of runs with one seed the newest finished one counts: they are equal, or something differs that nobody wrote down.
    for record in sorted(records, key=lambda r: (r.finished, r.written), reverse=True):
        repeated = record.seed is not None and record.seed in seen
        state = "counted" if record.state == "finished" else record.state
        parts["repeated" if repeated else state].append(record)
        seen.add(record.seed)
    for runs in parts.values():
        runs.sort(key=lambda r: (r.seed is None, r.seed or 0))
    return Group(label, shown, **{name: tuple(runs) for name, runs in parts.items()})


def _target(groups: Sequence[Group], target: float | None) -> tuple[float | None, str]:
    if target is not None:
        return target, "as asked"
    best = [Figure("accuracy", best=True)(record) for group in groups for record in group.counted]
    known = [value for value in best if value is not None]
    if not known:
        return None, "no run is finished without having diverged, so there is no target"
    # Rounded first: 0.29 * 100 is 28.999999999999996.
    chosen = math.floor(round(min(known) * 100, 9)) / 100
    if not chosen:
        return None, "not every run reaches 1 %, so there is no target; set one with --target"
    return chosen, "the highest whole percent that every finished run reaches; set another with --target"


def _baseline(groups: Sequence[Group], text: str | None) -> Group:
    if text is None:
        return groups[0]
    exact = [group for group in groups if group.label == text]
    fitting = exact or [group for group in groups if text in group.label]
    if len(fitting) != 1:
        which = "no group has" if not fitting else f"{len(fitting)} groups have"
        known = "; ".join(group.label for group in groups)
        raise ConfigError(f"--baseline {text!r}: {which} this in the label; there are: {known}")
    return fitting[0]


def _paired(groups: Sequence[Group], baseline: Group) -> Iterator[Paired]:
    final = Figure("accuracy")
    known = {run.seed: value for run in baseline.counted if (value := final(run)) is not None and run.seed is not None}
    for group in groups:
        pairs = {
            run.seed: value - known[run.seed]
            for run in group.counted
            if run.seed in known and (value := final(run)) is not None and run.seed is not None
        }
        difference = Spread.of(pairs.values())
        if group is not baseline and difference is not None and difference.count > 1:
            yield Paired(group.label, baseline.label, tuple(pairs), difference)
