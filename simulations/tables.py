"""The tables of a report, as words for people and as numbers for CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from fsl.simulations.compare import Comparison, Cost, Figure, Group, Spread, total

from fsl.observers import human_bytes

NOTHING = "-"
_BYTES = ("up_bytes", "down_bytes", "model_bytes")
_MOVING = ("moves", "migration_bytes", "migration_seconds", "wasted_steps")


@dataclass(frozen=True)
class Table:
    """Rows of words under a head; the first `names` columns say which group a row is about."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


@dataclass(frozen=True)
class _Column:
    head: str
    cell: Callable[[Group], str]


def groups_table(comparison: Comparison) -> Table:
    """One row per group: accuracies, what the target cost, spread over devices; without columns that nobody fills."""
    names = names_of(comparison)
    columns = [*names, _Column("runs", _runs)]
    if comparison.metric == "accuracy":
        columns += [
            _Column("final accuracy (%)", lambda g: _state(g) or percent(g.spread(Figure("accuracy")))),
            _Column("best accuracy (%)", lambda g: percent(g.spread(Figure("accuracy", best=True)))),
            *_target_columns(comparison),
            _Column("std over devices (%)", lambda g: percent(g.spread(Figure("accuracy_std")), spread_too=False)),
        ]
    else:
        columns += [
            _Column("final loss", lambda g: _state(g) or number(g.spread(Figure("loss")))),
            _Column("best loss", lambda g: number(g.spread(Figure("loss", best=True)))),
            _Column("final training loss", lambda g: number(g.spread(Figure("train_loss")))),
        ]
    columns += [
        _Column("moves", lambda g: _mean([total(run, "moves") for run in g.counted], "{:g}".format)),
        _Column(
            "bytes between edges", lambda g: _mean([total(run, "migration_bytes") for run in g.counted], human_bytes)
        ),
        _Column("time moving", lambda g: _mean([total(run, "migration_seconds") for run in g.counted], human_seconds)),
        _Column("steps done again", lambda g: _mean([total(run, "wasted_steps") for run in g.counted], "{:g}".format)),
        _Column("bytes in all", lambda g: _mean([total(run, *_BYTES) for run in g.counted], human_bytes)),
        _Column("wall time", lambda g: _mean([total(run, "seconds") for run in g.counted], human_seconds)),
    ]
    rows = [[column.cell(group) for group in comparison.groups] for column in columns]
    kept = [(column.head, row) for column, row in zip(columns, rows) if set(row) != {NOTHING}]
    return Table(tuple(head for head, _ in kept), tuple(zip(*(row for _, row in kept))), len(names))


def paired_table(comparison: Comparison) -> Table | None:
    """Differences of the final accuracy to the baseline, seed by seed; None where fewer than two seeds are shared."""
    if not comparison.paired:
        return None
    rows = []
    names = names_of(comparison)
    groups = {group.label: group for group in comparison.groups}
    for pair in comparison.paired:
        mean, half = 100 * pair.difference.mean, 100 * (pair.difference.ci95 or 0.0)
        interval = f"[{mean - half:+.2f}, {mean + half:+.2f}]"
        name = [column.cell(groups[pair.label]) for column in names]
        rows.append((*name, str(len(pair.seeds)), f"{mean:+.2f}", interval))
    head = (*(column.head for column in names), "shared seeds", "mean difference (points)", "95 % interval")
    return Table(head, tuple(rows), len(names))


def runs_table(comparison: Comparison) -> Table:
    """One row per run: where it lies and how it was started."""
    rows = []
    for group in comparison.groups:
        for run in group.runs:
            state = f"diverged in round {run.diverged_in}" if run.diverged_in is not None else run.state
            state += ", same seed as a newer run" if run in group.repeated else ""
            done = f"{run.rows[-1]['round']} of {run.rounds}" if not run.finished else str(run.rounds)
            value = Figure(comparison.metric)(run) if run.diverged_in is None else None
            final = NOTHING if value is None else f"{100 * value:.2f} %" if _is_accuracy(comparison) else f"{value:.4g}"
            seed = NOTHING if run.seed is None else str(run.seed)
            rows.append((group.label, seed, state, done, final, str(run.folder), run.command))
    for run in comparison.idle:
        rows.append((NOTHING, NOTHING, "finished no round", "0", NOTHING, str(run.folder), run.command))
    return Table(("group", "seed", "state", "rounds", f"final {comparison.metric}", "folder", "command"), tuple(rows))


def groups_csv(comparison: Comparison) -> str:
    """One line per group, numbers as they are: fractions, bytes, seconds."""
    settings = list(dict.fromkeys(key for group in comparison.groups for key in group.shown))
    lines = []
    for group in comparison.groups:
        costs = comparison.costs.get(group.label, ())
        lines.append(
            {
                "group": group.label,
                **{f"setting.{key}": group.shown.get(key) for key in settings},
                "runs": len(group.runs),
                "counted": len(group.counted),
                "diverged": len(group.diverged),
                "unfinished": len(group.unfinished),
                "repeated": len(group.repeated),
                "seeds": " ".join(str(run.seed) for run in group.counted if run.seed is not None),
                **_spread("final_accuracy", group.spread(Figure("accuracy"))),
                **_spread("best_accuracy", group.spread(Figure("accuracy", best=True))),
                **_spread("final_loss", group.spread(Figure("loss"))),
                **_spread("final_train_loss", group.spread(Figure("train_loss"))),
                **_spread("accuracy_std_over_devices", group.spread(Figure("accuracy_std"))),
                "target_accuracy": comparison.target,
                "reached_target": len(costs) if comparison.target is not None else None,
                **_spread("rounds_to_target", Spread.of(cost.rounds for cost in costs)),
                **_spread("bytes_to_target", Spread.of(cost.bytes for cost in costs)),
                **_spread("sim_seconds_to_target", Spread.of(cost.sim_seconds for cost in costs)),
                **{f"{key}_mean": _average([total(run, key) for run in group.counted]) for key in (*_BYTES, *_MOVING)},
                "sim_seconds_mean": _average([total(run, "sim_seconds") for run in group.counted]),
                "wall_seconds_mean": _average([total(run, "seconds") for run in group.counted]),
            }
        )
    return csv_text(lines)


def paired_csv(comparison: Comparison) -> str:
    """One line per group: its differences to the baseline, as fractions."""
    return csv_text(
        [
            {
                "group": pair.label,
                "baseline": pair.baseline,
                "seeds": " ".join(map(str, pair.seeds)),
                **_spread("final_accuracy_difference", pair.difference),
            }
            for pair in comparison.paired
        ]
    )


def runs_csv(comparison: Comparison) -> str:
    """One line per run."""
    table = runs_table(comparison)
    return csv_text([dict(zip(table.head, row)) for row in table.rows])


def percent(spread: Spread | None, spread_too: bool = True) -> str:
    """`93.05 ± 0.16`, from fractions: mean and standard deviation."""
    if spread is None:
        return NOTHING
    mean = f"{100 * spread.mean:.2f}"
    return f"{mean} ± {100 * spread.std:.2f}" if spread_too and spread.std is not None else mean


def number(spread: Spread | None) -> str:
    """`0.412 ± 0.02`: mean and standard deviation."""
    if spread is None:
        return NOTHING
    return f"{spread.mean:.4g}" + (f" ± {spread.std:.2g}" if spread.std is not None else "")


def human_seconds(seconds: float) -> str:
    """A duration in the unit that suits it: 42.0 s, 12.5 min, 3.1 h."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def names_of(comparison: Comparison) -> list[_Column]:
    """A column for each setting that differs; the label where these do not tell the groups apart."""
    groups = comparison.groups
    keys = list(dict.fromkeys(key for group in groups for key in group.shown))
    if len(groups) == 1 or any("#" in group.label for group in groups):
        return [_Column("group", lambda group: group.label)]
    return [_Column(key, partial(_shown, key=key)) for key in keys]


def _shown(group: Group, key: str) -> str:
    return group.shown.get(key, NOTHING)


def _target_columns(comparison: Comparison) -> list[_Column]:
    if comparison.target is None:
        return []
    percentage = f"{100 * comparison.target:g}\u00a0%"  # a line is not to break before the sign
    to = f"to {percentage}"

    def costs(group: Group) -> Sequence[Cost]:
        return comparison.costs.get(group.label, ())

    def reached(group: Group) -> str:
        return f"{len(costs(group))}/{len(group.counted)}" if group.counted else NOTHING

    columns = [
        _Column(f"rounds {to}", lambda g: _mean([cost.rounds for cost in costs(g)], lambda v: f"{v:.1f}")),
        _Column(f"bytes {to}", lambda g: _mean([cost.bytes for cost in costs(g)], human_bytes)),
        _Column(f"simulated time {to}", lambda g: _mean([cost.sim_seconds for cost in costs(g)], human_seconds)),
    ]
    if any(len(costs(group)) < len(group.counted) for group in comparison.groups):
        columns.insert(0, _Column(f"reached {percentage}", reached))
    return columns


def _is_accuracy(comparison: Comparison) -> bool:
    return comparison.metric == "accuracy"


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
    """What stands in place of an accuracy where no run has one to count."""
    if group.counted:
        return None
    return "diverged" if group.diverged else "unfinished"


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _mean(values: Sequence[float | None], words: Callable[[float], str]) -> str:
    mean = _average(values)
    return NOTHING if mean is None else words(mean)


def _spread(name: str, spread: Spread | None) -> dict[str, float | None]:
    if spread is None:
        return dict.fromkeys((f"{name}_mean", f"{name}_std", f"{name}_ci95"))
    return {f"{name}_mean": spread.mean, f"{name}_std": spread.std, f"{name}_ci95": spread.ci95}


def csv_text(lines: Sequence[dict[str, Any]]) -> str:
    """Lines with the same keys as a CSV file."""
    text = io.StringIO(newline="")
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()
