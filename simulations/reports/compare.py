"""Compares runs: groups by differing settings, means and spreads over seeds, and the cost of a target accuracy."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from fsl.simulations.reports.against import Response, respond
from fsl.simulations.reports.differing_settings import Words
from fsl.simulations.reports.groups import Figure, Group, grouped, settings_of, texts_of, whole_key
from fsl.simulations.reports.measures import ALL_BYTES, BYTES, Measure, is_number, numbers_of
from fsl.simulations.reports.ranked import Rank
from fsl.simulations.reports.renaming import Names, Renames
from fsl.simulations.reports.run_records import RunRecord
from fsl.simulations.reports.spreads import Kind, Spread, holm, paired_p

from fsl.errors import ConfigError

_SHOWN = 8  # values of a setting at most in a sentence
__all__ = ["Comparison", "Cost", "Figure", "Group", "Paired", "Spread", "compare", "reaching", "total"]


@dataclass(frozen=True)
class Cost:
    """The cost to reach the target: all rounds up to the first evaluated one that reached it."""

    rounds: int
    bytes: float
    sim_seconds: float | None


@dataclass(frozen=True)
class Paired:
    """A group's differences of the metric to the baseline, seed by seed.

    `p` comes from a paired t-test, `p_holm` is corrected for the number of groups (Holm); None where the differences
    have no spread.
    """

    label: str
    baseline: str
    seeds: tuple[int, ...]
    difference: Spread
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The contents of a report, without its form."""

    groups: tuple[Group, ...]
    shared: Mapping[str, str]  # settings that all runs share
    metric: str  # the requested metric; by default accuracy, or loss where no run has an accuracy
    scored: str  # `metric`, or accuracy or loss in place of an amount, which has no learning curve
    target: float | None
    target_reason: str
    baseline: str  # the label of the group with which others are compared
    paired: tuple[Paired, ...] = ()
    idle: tuple[RunRecord, ...] = ()
    unreadable: tuple[str, ...] = ()
    costs: Mapping[str, tuple[Cost, ...]] = field(default_factory=dict)  # by label, of the runs that reached the target
    by: tuple[str, ...] | None = None  # the settings that divide groups, where the caller named them
    averaged: Mapping[str, str] = field(default_factory=dict)  # settings that differ within groups, with their values
    uneven: bool = False  # whether groups have different mixes of these
    response: Response | None = None
    order: str = ""  # the order of groups in words, where it is not the order of the runs
    sources: Mapping[str, str] = field(default_factory=dict)  # sources of cost profiles' numbers

    @property
    def accurate(self) -> bool:
        """True where any run has an accuracy."""
        return any(row.get("accuracy") is not None for group in self.groups for run in group.runs for row in run.rows)

    @property
    def measure(self) -> Measure:
        """The metric, with its unit and direction."""
        return Measure(self.metric)


def total(record: RunRecord, *keys: str) -> float | None:
    """Returns the sum over all rounds; None where nothing was measured."""
    values = [row[key] for row in record.rows for key in keys if is_number(row.get(key))]
    return float(sum(values)) if values else None


def compare(
    records: Sequence[RunRecord],
    target: float | None = None,
    baseline: str | None = None,
    idle: Sequence[RunRecord] = (),
    unreadable: Sequence[str] = (),
    *,
    by: Sequence[str] | None = None,
    metric: str | None = None,
    against: str | None = None,
    rename: Renames = (),
    rank: Rank | None = None,
) -> Comparison:
    """Group runs by what differs, and compare the groups; ConfigError for invalid arguments.

    `target`: an accuracy in (0, 1]; by default the highest whole percent that every counted run reaches. `baseline`: a
    part of the label of the group to compare others with; by default the first. `by`: the only settings, name or tags
    that divide groups. `metric`: a column of numbers in `metrics.jsonl`, or "bytes"; by default accuracy. `against`:
    the setting on the x axis. `rename`: new names of labels, settings and values. `rank`: sorts groups, best first; by
    default they keep the order of the runs.
    """
    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target {target}: an accuracy lies in (0, 1]; 0.8 is 80 %")
    accurate = any(row.get("accuracy") is not None for record in records for row in record.rows)
    usual = "accuracy" if accurate else "loss"
    metric = usual if metric is None else _metric(records, metric)
    settings = settings_of(records)
    keys = None if by is None else tuple(dict.fromkeys(whole_key(key, settings, "--by") for key in by))
    grouping = grouped(records, keys)
    response = None if against is None else respond(records, against, metric, keys)
    if rank is not None:
        grouping = replace(grouping, groups=_sorted(grouping.groups, rank))
    names = Names(grouping.groups, texts_of(settings), rename)
    groups = names.groups
    no_target = (None, "no run has an accuracy, so there is no target")
    chosen, reason = _target(groups, target) if accurate else no_target
    first = _baseline(groups, baseline, [group.label for group in grouping.groups])
    costs = {
        group.label: tuple(cost for run in group.counted if (cost := reaching(run, chosen)) is not None)
        for group in groups
        if chosen is not None
    }
    return Comparison(
        groups=groups,
        shared=names.settings(grouping.shared),
        metric=metric,
        scored=usual if Measure(metric).adds_up else metric,
        target=chosen,
        target_reason=reason,
        baseline=first.label,
        paired=_corrected(list(_paired(groups, first, metric))),
        idle=tuple(idle),
        unreadable=tuple(unreadable),
        costs=costs,
        averaged={
            names.setting(key): _listed([names.value(key, value) for value in values])
            for key, values in grouping.averaged.items()
        },
        by=None if keys is None else tuple(names.setting(Words(settings).name(key)) for key in keys),
        uneven=grouping.uneven,
        response=None if response is None else names.response(response),
        order="" if rank is None else rank.words,
        sources={key: value for record in records for key, value in record.sources.items()},
    )


def reaching(record: RunRecord, target: float) -> Cost | None:
    """Returns a run's cost to reach the target; None if it never did."""
    for i, row in enumerate(record.rows):
        if row.get("accuracy") is not None and row["accuracy"] >= target:
            sent = sum(row.get(key) or 0 for row in record.rows[: i + 1] for key in BYTES)
            times = [row.get("sim_seconds") for row in record.rows[: i + 1]]
            known = [time for time in times if time is not None]
            return Cost(row["round"], sent, sum(known) if len(known) == len(times) else None)
    return None


def mean_of(values: Sequence[float | None]) -> float | None:
    """Returns the mean of known values; None without any."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _metric(records: Sequence[RunRecord], metric: str) -> str:
    known = numbers_of(row for record in records for row in record.rows)
    if any(key in known for key in BYTES):
        known.append(ALL_BYTES)
    if metric not in known:
        raise ConfigError(f"--metric {metric}: no run has numbers of it; there are: {', '.join(known)}")
    return metric


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values) if len(values) <= _SHOWN else f"{len(values)} values"


def _sorted(groups: Sequence[Group], rank: Rank) -> tuple[Group, ...]:
    """Sort groups, best first; those without a score come last."""
    scores = {id(group): mean_of([rank.score(run) for run in group.counted]) for group in groups}
    known = sorted(
        (group for group in groups if scores[id(group)] is not None),
        key=lambda group: scores[id(group)] or 0.0,
        reverse=rank.maximize,
    )
    return (*known, *(group for group in groups if scores[id(group)] is None))


def _target(groups: Sequence[Group], target: float | None) -> tuple[float | None, str]:
    if target is not None:
        return target, "as asked"
    best = [Figure("accuracy", best=True)(record) for group in groups for record in group.counted]
    known = [value for value in best if value is not None]
    if not known:
        return None, "no run is finished without having diverged, so there is no target"
    # Rounds first: 0.29 * 100 is 28.999999999999996.
    chosen = math.floor(round(min(known) * 100, 9)) / 100
    if not chosen:
        return None, "not every run reaches 1 %, so there is no target; set one with --target"
    return chosen, "the highest whole percent that every finished run reaches; set another with --target"


def _baseline(groups: Sequence[Group], text: str | None, before: Sequence[str]) -> Group:
    """Find the group with this text in its label, either the new one or the one `before` renaming."""
    if text is None:
        return groups[0]
    for named in ([group.label for group in groups], before):
        exact = [group for group, label in zip(groups, named) if label == text]
        fitting = exact or [group for group, label in zip(groups, named) if text in label]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            break
    which = "no group has" if not fitting else f"{len(fitting)} groups have"
    known = "; ".join(group.label for group in groups)
    raise ConfigError(f"--baseline {text!r}: {which} this in the label; there are: {known}")


def _paired(groups: Sequence[Group], baseline: Group, metric: str) -> Iterator[Paired]:
    kind: Kind = "difference of shares" if Measure(metric).share else "score"
    known = _by_seed(baseline, metric)
    for group in groups:
        found = _by_seed(group, metric)
        pairs = {seed: value - known[seed] for seed, value in found.items() if seed in known}
        difference = Spread.of(pairs.values(), kind)
        if group is not baseline and difference is not None and difference.count > 1:
            yield Paired(group.label, baseline.label, tuple(pairs), difference, paired_p(list(pairs.values())))


def _by_seed(group: Group, metric: str) -> dict[int, float]:
    """Returns the metric by seed: the mean over a seed's runs, which differ in settings that do not divide groups."""
    found: dict[int, list[float]] = {}
    for run in group.counted:
        value = Figure(metric)(run)
        if value is not None and math.isfinite(value) and run.seed is not None:
            found.setdefault(run.seed, []).append(value)
    return {seed: fmean(values) for seed, values in found.items()}


def _corrected(paired: Sequence[Paired]) -> tuple[Paired, ...]:
    return tuple(replace(pair, p_holm=p) for pair, p in zip(paired, holm([pair.p for pair in paired])))
