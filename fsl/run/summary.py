"""What `metrics.jsonl` and `summary.json` tell of a run: a row's columns, and the final figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from fsl.run import provenance
from fsl.run.common_of_run import common_of_run, peak_memory
from fsl.run.divergence import diverged_in
from fsl.run.label import Label

COLUMNS = [
    "train_loss",
    "loss",
    "accuracy",
    "devices",
    "examples",
    "up_bytes",
    "down_bytes",
    "model_bytes",
    "seconds",
    "sim_seconds",
    "energy_joules",
]
_TOTALS = ("up_bytes", "down_bytes", "model_bytes", "seconds", "sim_seconds", "energy_joules")


def summary_of(
    rows: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    best: Mapping[str, Any] | None,
    classes: int | None,
    bound: float | None,
    stopped: Mapping[str, Any] | None,
    label: Label,
    metrics: Sequence[str],
    weights: str,
    settings: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Returns a run's final figures from its rows, and what one needs to know to run it again.

    `metrics`: the names of those beside loss and accuracy. `bound`: the loss above which the run has diverged.
    `weights`: a digest of the first ones. `seconds`: of wall time.
    """
    last = rows[-1] if rows else {}
    return {
        **label.to_json(),
        "final": {key: last.get(key) for key in ("round", "train_loss", "loss", "accuracy")} | _others(last, metrics),
        "metrics": list(metrics),
        "best_round": best["round"] if best else None,
        "diverged": diverged_in(list(rows), bound) is not None,
        "divergence_bound": bound,
        "totals": {key: _total(rows, key) for key in _TOTALS},
        "stopped_early": stopped,
        "wall_seconds": seconds,
        "common": common_of_run(rows, peak_memory()).to_json(),
        **({} if classes is None else {"classes": classes}),
        "seed": seed,
        "weights": weights,
        "settings": settings,
        "versions": provenance.versions(),
        "command": provenance.command(),
    }


def remarks_on(noisy_cut: bool, codec: str) -> tuple[str, ...]:
    """Returns in what a trained model alone is not what the run had: noise at the cut, the codec of smashed data."""
    found = []
    if noisy_cut:
        found.append(
            "smashed data leave this front without the clip and the noise of privacy.cut: whoever serves it adds them, "
            "or does without that protection"
        )
    if (name := codec.rpartition(".")[2]) != "Identity":
        found.append(f"smashed data leave this front as they are; in the run the codec {name} changed them")
    return tuple(found)


def _others(row: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """Returns the columns of a row with these metrics, and with figures over devices and of validation data."""
    names = ("loss", "accuracy", *metrics)
    found = {
        f"{prefix}{name}{figure}" for prefix in ("", "validation_", "own_") for name in names for figure in _FIGURES
    }
    kept = {key: value for key, value in row.items() if key in found and key not in ("loss", "accuracy")}
    return kept | {key: value for key, value in row.items() if key.startswith(_AT_EXITS)}


_FIGURES = ("", "_std", "_worst")
_AT_EXITS = tuple(f"{prefix}{name}_at_" for prefix in ("", "validation_") for name in ("loss", "accuracy"))


def _total(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The sum over rounds; None where a round does not have it."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) if len(values) == len(rows) else None
