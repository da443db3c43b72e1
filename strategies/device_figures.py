"""Computes a round's columns from the scores of devices: means, spreads, and the tenth of devices that fares worst."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from flwr.app import Message, MetricRecord

from fsl.messages.record_names import METRICS
from fsl.privacy.leak_probe import LEAKS

OWN = "own_"  # prefixes the columns of rows that a device holds out for itself
_ALWAYS: Mapping[str, bool | None] = {"loss": False, "accuracy": True}  # whether higher is better


def device_figures(replies: Sequence[Message], metrics: Mapping[str, bool | None]) -> MetricRecord | None:
    """Returns, over the devices that nodes scored, each column's mean, `_std` and `_worst`; None without a score.

    `metrics`: the run's, by name, and whether higher is better (None: nobody knows, so there is no worst). `_std` is
    the population's standard deviation. `_worst` is the mean over the tenth of devices, rounded up, that fares worst.
    Devices on which a metric has no meaning (NaN) are left out of it; a loss that is not finite counts.
    """
    directions = {f"{prefix}{name}": up for prefix in ("", OWN) for name, up in {**_ALWAYS, **metrics}.items()}
    scores: dict[int, dict[str, float]] = {}
    for reply in replies:
        record: Any = reply.content.metric_records[METRICS]
        columns = {name: record[name] for name in (*directions, *LEAKS) if record.get(name)}
        for place, device in enumerate(record["device"]):
            scores[device] = {name: values[place] for name, values in columns.items()}
    if not scores:
        return None
    result: dict[str, int | float | list[int] | list[float]] = {"evaluated_devices": len(scores)}
    for name in (*directions, *LEAKS):
        values = [scores[device][name] for device in sorted(scores) if name in scores[device]]
        if name.removeprefix(OWN) == "accuracy" and len(values) < len(scores):
            continue  # an objective has an accuracy on all devices, or on none
        if values:
            result |= _of(name, values, directions.get(name), spread=name not in LEAKS)
    return MetricRecord(result)


def score_columns(metrics: Mapping[str, bool | None]) -> set[str]:
    """Returns the names of all columns that evaluations of a run with these metrics may have."""
    names = {f"{prefix}{name}" for prefix in ("", OWN, "validation_") for name in (*_ALWAYS, *metrics)}
    return names | {f"{name}{figure}" for name in names for figure in ("_std", "_worst")}


def _of(name: str, values: Sequence[float], higher: bool | None, spread: bool) -> dict[str, float]:
    if not name.endswith("loss"):
        values = [value for value in values if not math.isnan(value)] or [math.nan]
    if not all(map(math.isfinite, values)):
        return {name: fmean(values)}
    found = {name: fmean(values)}
    if spread:
        found[f"{name}_std"] = pstdev(values)
        if higher is not None:
            found[f"{name}_worst"] = fmean(sorted(values, reverse=not higher)[: math.ceil(len(values) / 10)])
    return found
