"""Writes a report's tables as CSV: full numbers, shares as fractions, sizes in bytes, times in seconds."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from fsl.simulations.reports.compare import Comparison, Figure, Group, mean_of, total
from fsl.simulations.reports.differing_settings import Words
from fsl.simulations.reports.groups import settings_of
from fsl.simulations.reports.measures import ALL_BYTES, BYTES, Measure, numbers_of, value_of
from fsl.simulations.reports.run_records import RunRecord
from fsl.simulations.reports.spreads import Spread

_SCORES = ("accuracy", "loss", "train_loss")
_AMOUNTS = (*BYTES, ALL_BYTES, "seconds", "sim_seconds")
_MOVING = ("moves", "migration_bytes", "migration_seconds", "wasted_steps")
_APART = (*_SCORES, *_AMOUNTS, *_MOVING, "accuracy_std")


def groups_csv(comparison: Comparison) -> str:
    """Write one line per group."""
    settings = list(dict.fromkeys(key for group in comparison.groups for key in group.numbers))
    others = [key for key in _columns(comparison) if key not in _APART]
    lines = []
    for group in comparison.groups:
        costs = comparison.costs.get(group.label, ())
        lines.append(
            {
                "group": group.label,
                **{f"setting.{key}": group.numbers.get(key) for key in settings},
                "runs": len(group.runs),
                "counted": len(group.counted),
                "diverged": len(group.diverged),
                "unfinished": len(group.unfinished),
                "repeated": len(group.repeated),
                "seeds": " ".join(str(run.seed) for run in group.counted if run.seed is not None),
                **_of("final_accuracy", group, "accuracy"),
                **_of("best_accuracy", group, "accuracy", best=True),
                **_of("final_loss", group, "loss"),
                **_of("final_train_loss", group, "train_loss"),
                **_of("accuracy_std_over_devices", group, "accuracy_std"),
                "target_accuracy": comparison.target,
                "reached_target": len(costs) if comparison.target is not None else None,
                **spread_cells("rounds_to_target", Spread.of((cost.rounds for cost in costs), "amount")),
                **spread_cells("bytes_to_target", Spread.of((cost.bytes for cost in costs), "amount")),
                **spread_cells("sim_seconds_to_target", Spread.of((cost.sim_seconds for cost in costs), "amount")),
                **{f"{key}_mean": mean_of([total(run, key) for run in group.counted]) for key in (*BYTES, *_MOVING)},
                "total_bytes_mean": mean_of([total(run, *BYTES) for run in group.counted]),
                "sim_seconds_mean": mean_of([total(run, "sim_seconds") for run in group.counted]),
                "wall_seconds_mean": mean_of([total(run, "seconds") for run in group.counted]),
                **{name: cell for key in others for name, cell in _of(_named(key), group, key).items()},
            }
        )
    return csv_text(lines)


def runs_csv(comparison: Comparison) -> str:
    """Write one line per run: final values, and sums over its rounds; of a diverged run only its costs."""
    columns = _columns(comparison)
    told = [*(run for group in comparison.groups for run in group.runs), *comparison.idle]
    tags = list(dict.fromkeys(key for run in told for key in run.named))
    runs = [(run, group) for group in comparison.groups for run in group.runs]
    settings = settings_of([run for run, _ in runs])
    words = Words(settings)
    keys = [key for key in words.keys if key not in tags and words.differs(key, settings)]
    lines = []
    for (run, group), known in zip(runs, settings):
        chosen = {f"setting.{words.name(key)}": words.number(key, known.get(key)) for key in keys}
        lines.append(_run(run, columns, {key: run.named.get(key) for key in tags} | chosen, group))
    unknown: dict[str, Any] = dict.fromkeys([*tags, *(f"setting.{words.name(key)}" for key in keys)])
    return csv_text([*lines, *(_run(run, columns, unknown | dict(run.named), None) for run in comparison.idle)])


def paired_csv(comparison: Comparison) -> str:
    """Write one line per group: its differences to the baseline, as fractions where the metric is a share."""
    return csv_text(
        [
            {
                "group": pair.label,
                "baseline": pair.baseline,
                "seeds": " ".join(map(str, pair.seeds)),
                **spread_cells(f"{_named(comparison.metric)}_difference", pair.difference),
                "test": "paired t",
                "p": pair.p,
                "p_holm": pair.p_holm,
            }
            for pair in comparison.paired
        ]
    )


def against_csv(comparison: Comparison) -> str:
    """Write one line per series and value of the setting."""
    response = comparison.response
    if response is None:
        return ""
    return csv_text(
        [
            {
                "group": series.label,
                f"setting.{response.setting}": point.x if response.numeric else point.text,
                "runs": point.spread.count,
                **spread_cells(_named(response.metric), point.spread),
            }
            for series in response.series
            for point in series.points
        ]
    )


def spread_cells(name: str, spread: Spread | None) -> dict[str, float | None]:
    """Returns mean, standard deviation and the mean's 95 % interval, by column."""
    names = (f"{name}_mean", f"{name}_std", f"{name}_ci95_low", f"{name}_ci95_high")
    if spread is None:
        return dict.fromkeys(names)
    return dict(zip(names, (spread.mean, spread.std, spread.low, spread.high)))


def csv_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Write lines with equal keys as a CSV file's text."""
    text = io.StringIO(newline="")
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()


def _run(run: RunRecord, columns: Sequence[str], told: Mapping[str, Any], group: Group | None) -> dict[str, Any]:
    finals = [key for key in columns if not Measure(key).adds_up]
    amounts = [key for key in columns if Measure(key).adds_up]
    valid = run.diverged_in is None
    return {
        "group": None if group is None else group.label,
        **told,
        "seed": run.seed,
        "state": "no round finished" if group is None else run.state,
        "repeats": str(twin.folder) if group is not None and (twin := group.twins.get(run.folder)) else None,
        "rounds": run.rounds,
        "rounds_done": run.rows[-1]["round"] if run.rows else 0,
        "diverged_in_round": run.diverged_in,
        **{f"final_{key}": value_of(run.rows, key) if valid else None for key in finals},
        "best_accuracy": value_of(run.rows, "accuracy", best=True) if valid else None,
        **{"total_bytes" if key == ALL_BYTES else key: value_of(run.rows, key) for key in amounts},
        "folder": str(run.folder),
        "command": run.command,
    }


def _columns(comparison: Comparison) -> list[str]:
    """List the columns of every run in CSV files: the fixed ones, and all others with numbers."""
    rows = (row for group in comparison.groups for run in group.runs for row in run.rows)
    return list(dict.fromkeys([*_SCORES, *_AMOUNTS, *numbers_of(rows)]))


def _named(key: str) -> str:
    return {ALL_BYTES: "total_bytes"}.get(key, key) if Measure(key).adds_up else f"final_{key}"


def _of(name: str, group: Group, key: str, best: bool = False) -> dict[str, float | None]:
    return spread_cells(name, group.spread(Figure(key, best)))
