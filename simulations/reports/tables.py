"""Builds a report's tables, as text for people."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fsl.simulations.reports.compare import Comparison, Cost, Figure, Group, mean_of, total
from fsl.simulations.reports.measures import BYTES, NOTHING, Measure, human_seconds
from fsl.simulations.reports.spreads import Spread

from fsl.run.observers import human_bytes

Part = Literal["results", "costs"]


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first `names` columns name a row's group."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


def markdown_of(table: Table) -> str:
    """Returns a table as Markdown."""
    lines = ["| " + " | ".join(table.head) + " |", "|---" * len(table.head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table.rows)]) + "\n"


@dataclass(frozen=True)
class _Column:
    head: str
    cell: Callable[[Group], str]
    part: Part = "costs"


def groups_table(comparison: Comparison, part: Part | None = None) -> Table:
    """Build one row per group: the metric, the target's cost, bytes and time; leaves out empty columns.

    `part`: only scores ("results"), or only expenses ("costs"); both by default.
    """
    names = names_of(comparison)
    columns = [*_results(comparison), *_costs(comparison)]
    columns = [*names, *(column for column in columns if part in (None, column.part))]
    rows = [[column.cell(group) for group in comparison.groups] for column in columns]
    kept = [(column.head, row) for column, row in zip(columns, rows) if set(row) != {NOTHING} or column in names]
    return Table(tuple(head for head, _ in kept), tuple(zip(*(row for _, row in kept))), len(names))


def paired_table(comparison: Comparison) -> Table | None:
    """Build the differences of the metric to the baseline, seed by seed; None with fewer than two shared seeds."""
    if not comparison.paired:
        return None
    rows = []
    names = names_of(comparison)
    groups = {group.label: group for group in comparison.groups}
    measure = comparison.measure
    for pair in comparison.paired:
        mean, low, high = (_difference(measure, value or 0.0) for value in _of(pair.difference))
        name = [column.cell(groups[pair.label]) for column in names]
        rows.append((*name, str(len(pair.seeds)), mean, f"[{low}, {high}]", _p(pair.p), _p(pair.p_holm)))
    difference = f"mean difference ({'points' if measure.share else measure.title})"
    head = (*(c.head for c in names), "shared seeds", difference, "95 % interval", "p", "p (Holm)")
    return Table(head, tuple(rows), len(names))


def against_table(comparison: Comparison) -> Table | None:
    """Build the metric against a setting, one row per series and value; None where nobody asked for it."""
    response = comparison.response
    if response is None:
        return None
    measure = comparison.measure
    several = len(response.series) > 1
    rows = [
        (
            *((series.label,) if several else ()),
            point.text,
            str(point.spread.count),
            measure.spread(point.spread),
            measure.interval(point.spread),
        )
        for series in response.series
        for point in series.points
    ]
    head = (*(("group",) if several else ()), response.setting, "runs", measure.heading, "95 % interval")
    return Table(head, tuple(rows), 2 if several else 1)


def runs_table(comparison: Comparison) -> Table:
    """Build one row per run: its folder, and the command that repeats it."""
    rows = []
    measure = comparison.measure
    for group in comparison.groups:
        for run in group.runs:
            state = f"diverged in round {run.diverged_in}" if run.diverged_in is not None else run.state
            state += f", repeats {group.twins[run.folder].folder}" if run in group.repeated else ""
            done = f"{run.rows[-1]['round']} of {run.rounds}" if not run.finished else str(run.rounds)
            value = Figure(comparison.metric)(run) if run.diverged_in is None else None
            final = NOTHING if value is None else measure.words(value) + (" %" if measure.share else "")
            seed = NOTHING if run.seed is None else str(run.seed)
            rows.append((group.label, seed, state, done, final, str(run.folder), run.command))
    for run in comparison.idle:
        rows.append((NOTHING, NOTHING, "finished no round", "0", NOTHING, str(run.folder), run.command))
    final_of = measure.heading.removesuffix(" (%)")
    return Table(("group", "seed", "state", "rounds", final_of, "folder", "command"), tuple(rows))


def _results(comparison: Comparison) -> list[_Column]:
    runs = _Column("runs", _runs, "results")
    first = _metric_columns(comparison.metric)
    if not comparison.accurate:
        others = [key for key in ("loss", "train_loss") if key != comparison.metric]
        best = [_Column("best loss", lambda g: _words("loss", g, best=True), "results")]
        return [runs, *first, *best, *(_plain(key) for key in others), *_other_metrics(comparison)]
    others = [key for key in ("accuracy", "loss") if key != comparison.metric]
    return [
        runs,
        *first,
        *(_plain(key) for key in others if key == "accuracy"),
        _Column("best accuracy (%)", lambda g: _words("accuracy", g, best=True), "results"),
        *(_plain(key) for key in others if key == "loss"),
        *_other_metrics(comparison),
        *_target_columns(comparison),
        _Column("std over devices (%)", lambda g: percent(g.spread(Figure("accuracy_std")), False), "results"),
    ]


def _other_metrics(comparison: Comparison) -> list[_Column]:
    """Returns a column for each metric beside loss and accuracy, and for accuracy on devices' own rows."""
    names = dict.fromkeys(name for group in comparison.groups for run in group.runs for name in run.metrics)
    keys = [*names, "own_accuracy", "own_accuracy_worst"]
    return [_plain(key) for key in keys if key != comparison.metric]


def _metric_columns(key: str) -> list[_Column]:
    measure = Measure(key)
    return [
        _Column(measure.heading, lambda g: _state(g) or _words(key, g), "results"),
        _Column("95 % interval", lambda g: measure.interval(g.spread(Figure(key))), "results"),
    ]


def _plain(key: str) -> _Column:
    return _Column(Measure(key).heading, lambda g: _words(key, g), "results")


def _words(key: str, group: Group, best: bool = False) -> str:
    return Measure(key).spread(group.spread(Figure(key, best)))


def _costs(comparison: Comparison) -> list[_Column]:
    def sums(head: str, words: Callable[[float], str], *keys: str) -> _Column:
        return _Column(head, lambda g: _mean([total(run, *keys) for run in g.counted], words))

    return [
        sums("moves", "{:g}".format, "moves"),
        sums("bytes between edges", human_bytes, "migration_bytes"),
        sums("time moving", human_seconds, "migration_seconds"),
        sums("steps done again", "{:g}".format, "wasted_steps"),
        sums("smashed data up", human_bytes, "up_bytes"),
        sums("cut gradients down", human_bytes, "down_bytes"),
        sums("model states", human_bytes, "model_bytes"),
        sums("bytes in all", human_bytes, *BYTES),
        sums("simulated time", human_seconds, "sim_seconds"),
        sums("wall time", human_seconds, "seconds"),
    ]


def _of(spread: Spread) -> tuple[float, float | None, float | None]:
    return spread.mean, spread.low, spread.high


def _difference(measure: Measure, value: float) -> str:
    if measure.share:
        return f"{100 * value:+.2f}"
    return f"{'-' if value < 0 else '+'}{measure.words(abs(value))}" if measure.adds_up else f"{value:+.4g}"


def _p(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}" if value >= 0.001 else "<0.001"


def percent(spread: Spread | None, spread_too: bool = True) -> str:
    """Write mean and standard deviation of fractions in percent: `93.05 ± 0.16`."""
    if spread is None:
        return NOTHING
    mean = f"{100 * spread.mean:.2f}"
    return f"{mean} ± {100 * spread.std:.2f}" if spread_too and spread.std is not None else mean


def names_of(comparison: Comparison) -> list[_Column]:
    """Returns a column for each differing setting; the label where these do not distinguish the groups."""
    groups = comparison.groups
    keys = list(dict.fromkeys(key for group in groups for key in group.shown))
    if len(groups) == 1 or any("#" in group.label or group.called for group in groups):
        return [_Column("group", lambda group: group.label)]
    return [_Column(key, partial(_shown, key=key)) for key in keys]


def _shown(group: Group, key: str) -> str:
    return group.shown.get(key, NOTHING)


def _target_columns(comparison: Comparison) -> list[_Column]:
    if comparison.target is None:
        return []
    percentage = f"{100 * comparison.target:g}\u00a0%"  # no line break before the sign
    to = f"to {percentage}"

    def costs(group: Group) -> Sequence[Cost]:
        return comparison.costs.get(group.label, ())

    def reached(group: Group) -> str:
        return f"{len(costs(group))}/{len(group.counted)}" if group.counted else NOTHING

    columns = [
        _Column(f"rounds {to}", lambda g: _mean([cost.rounds for cost in costs(g)], "{:.1f}".format), "results"),
        _Column(f"bytes {to}", lambda g: _mean([cost.bytes for cost in costs(g)], human_bytes)),
        _Column(f"simulated time {to}", lambda g: _mean([cost.sim_seconds for cost in costs(g)], human_seconds)),
    ]
    if any(len(costs(group)) < len(group.counted) for group in comparison.groups):
        columns.insert(0, _Column(f"reached {percentage}", reached, "results"))
    return columns


def _runs(group: Group) -> str:
    parts = [
        f"{len(runs)} {word}"
        for runs, word in (
            (group.diverged, "diverged"),
            (group.unfinished, "unfinished"),
            (group.repeated, "repeated"),
        )
        if runs
    ]
    return f"{len(group.runs)}" + (f" ({', '.join(parts)})" if parts else "")


def _state(group: Group) -> str | None:
    """Returns the text in place of an accuracy where no run has one."""
    if group.counted:
        return None
    return "diverged" if group.diverged else "unfinished"


def _mean(values: Sequence[float | None], words: Callable[[float], str]) -> str:
    mean = mean_of(values)
    return NOTHING if mean is None else words(mean)
