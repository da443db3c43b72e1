"""The common metrics of a run, from its rounds' rows."""

import math
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fsl.metrics.common_metrics import CommonValues
from fsl.privacy.ledger import epsilon_metric

_POINT = 0.01  # of accuracy; of a loss' way from the first to the lowest
_BYTES = ("up_bytes", "down_bytes", "model_bytes")


def common_of_run(rows: Sequence[Mapping[str, Any]], memory_bytes: float | None = None) -> CommonValues:
    """Returns what a run's rows come to; `memory_bytes`: the most that its process had in memory."""
    if not rows:
        return CommonValues(memory_bytes=memory_bytes)
    clock = "sim_seconds" if all(_number(row.get("sim_seconds")) for row in rows) else "seconds"
    seconds = [float(row[clock]) for row in rows if _number(row.get(clock)) and row.get("devices", 1)]
    examples = _total(rows, "examples")
    sent = [_total(rows, key) for key in _BYTES]
    return CommonValues(
        accuracy=_last(rows, "accuracy"),
        loss=_last(rows, "loss"),
        convergence_rounds=_converged(rows),
        latency_seconds=_percentile(seconds, 50),
        latency_p99_seconds=_percentile(seconds, 99),
        throughput=_ratio(examples, sum(seconds)),
        bytes_per_row=None if None in sent else _ratio(sum(each for each in sent if each is not None), examples),
        rounds=float(sum(bool(row.get("devices", 1)) for row in rows)),
        energy_joules_per_row=_ratio(_total(rows, "energy_joules"), examples),
        memory_bytes=memory_bytes,
        epsilon=_last(rows[-1:], epsilon_metric("model")),
        completed=_completed(rows),
    )


def peak_memory() -> float:
    """Returns the most bytes that this process has had in memory (resident)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def _converged(rows: Sequence[Mapping[str, Any]]) -> float | None:
    scores = [(float(row["round"]), float(row["accuracy"])) for row in rows if _number(row.get("accuracy"))]
    if scores:
        least = max(score for _, score in scores) - _POINT
        return next(round for round, score in scores if score >= least)
    losses = [(float(row["round"]), float(row["loss"])) for row in rows if _number(row.get("loss"))]
    if not losses:
        return None
    lowest = min(loss for _, loss in losses)
    most = lowest + _POINT * (losses[0][1] - lowest)
    return next(round for round, loss in losses if loss <= most)


def _completed(rows: Sequence[Mapping[str, Any]]) -> float | None:
    done = sum(row.get("devices") or 0 for row in rows)
    lost = sum(len(row.get("lost") or ()) for row in rows)
    return done / (done + lost) if done + lost else None


def _last(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return next((float(row[key]) for row in reversed(rows) if _number(row.get(key))), None)


def _total(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [float(row[key]) for row in rows if _number(row.get(key))]
    return sum(values) if len(values) == len(rows) else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _percentile(values: Sequence[float], percent: int) -> float | None:
    return float(np.percentile(values, percent, method="inverted_cdf")) if values else None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
