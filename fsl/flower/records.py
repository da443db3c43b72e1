"""Converts torch states and weighted sums to Flower records, and back.

Arrays carry NumPy's .npy bytes, as Flower's own do, so any Flower aggregator can read them. This module reads them
by their stated dtype and shape instead of `np.load`, whose header parser fails now and then on several threads
(CPython gh-106905).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from torch import Tensor

from fsl.errors import ConfigError, WireError
from fsl.messages.identifiers import is_count
from fsl.messages.reports import DeviceReport
from fsl.quoting import one_line
from fsl.segments.states import Layout, State
from fsl.segments.sums import DeviceStates, Total, WeightedSum

_LOW = "low:"  # prefixes what float64 rounded off a sum; sent only where it is not zero


def to_array(tensor: Tensor) -> Array:
    """Convert a tensor to a Flower array."""
    values = tensor.detach().cpu().contiguous().numpy()
    data = _npy_header(values.dtype.str, values.shape) + values.tobytes()
    return Array(dtype=str(values.dtype), shape=tuple(values.shape), stype="numpy.ndarray", data=data)


def to_numpy(array: Array) -> np.ndarray:
    """Returns a Flower array's values, read-only and not copied; WireError where its bytes do not fit its dtype."""
    data = array.data
    if data[:8] != b"\x93NUMPY\x01\x00" or b"'fortran_order': False" not in data[:128]:
        raise WireError("an array is not in C-ordered .npy format, version 1.0")
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        dtype = np.dtype(array.dtype)
    except Exception:  # whatever NumPy raises for a text that names no dtype
        raise WireError(f"an array claims dtype {ascii(array.dtype)[:40]}") from None
    if (
        any(size < 0 for size in array.shape)
        or dtype.hasobject
        or len(data) - start != dtype.itemsize * int(np.prod(array.shape, dtype=np.int64))
    ):
        raise WireError(f"an array of {len(data) - start} bytes claims shape {tuple(array.shape)} and dtype {dtype}")
    return np.frombuffer(data, dtype, offset=start).reshape(array.shape)


@lru_cache(maxsize=4096)
def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def check_dtypes(layout: Layout) -> None:
    """Refuse tensors that NumPy, and so a Flower message, cannot hold."""
    for field in layout.fields:
        if field.dtype is torch.bfloat16 or field.dtype.is_complex:
            raise ConfigError(
                f"tensor '{field.name}' is {field.dtype}, which a Flower message cannot carry; keep parameters in "
                "float32 (codec=bfloat16 compresses what crosses the cut)"
            )


def states_to_record(layouts: Mapping[str, Layout], states: Mapping[str, State]) -> ArrayRecord:
    """Convert segments' states to one ArrayRecord with keys `<segment>.<state_dict key>`."""
    return ArrayRecord(
        {
            f"{segment}.{field.name}": to_array(view)
            for segment, state in states.items()
            for field, view in layouts[segment].views(state)
        }
    )


def record_to_states(
    record: ArrayRecord, layouts: Mapping[str, Layout], device: torch.device | None = None
) -> dict[str, State]:
    """Read segments' states from a record; leaves out a segment of which the record has nothing."""
    states = {}
    for segment, layout in layouts.items():
        if layout.fields and not any(f"{segment}.{field.name}" in record for field in layout.fields):
            continue
        state = layout.zeros()
        for field, view in layout.views(state):
            _read(record, f"{segment}.{field.name}", view)
        states[segment] = State({d: f.to(device) for d, f in state.flats.items()}) if device else state
    return states


def totals_to_record(totals: Mapping[str, Total]) -> ArrayRecord:
    """Convert totals to one ArrayRecord: sums in float64 under `<segment>.<key>`, integer counters as they are.

    States one by one go under `<device>:<segment>.<key>`.
    """
    arrays: dict[str, Array] = {}
    for segment, total in totals.items():
        if isinstance(total, DeviceStates):
            for device, state in total.states.items():
                for field, view in total.layout.views(state):
                    arrays[f"{device}:{segment}.{field.name}"] = to_array(view)
        elif isinstance(total, WeightedSum) and total.weight:
            arrays |= _sum_arrays(segment, total)
    return ArrayRecord(arrays)


def _sum_arrays(segment: str, total: WeightedSum) -> dict[str, Array]:
    arrays = {}
    for field, view in total.layout.views(State({**total.high, **total.counters})):
        arrays[f"{segment}.{field.name}"] = to_array(view)
    for field, view in total.layout.views(State({**total.low, **total.counters})):
        if field.dtype.is_floating_point and view.any():
            arrays[f"{_LOW}{segment}.{field.name}"] = to_array(view)
    return arrays


def record_to_totals(
    record: ArrayRecord, weights: Mapping[str, float], layouts: Mapping[str, Layout], devices: Mapping[int, float]
) -> dict[str, Total]:
    """Read totals from a record, by segment: sums with `weights`, and states one by one with `devices`' weights."""
    totals: dict[str, Total] = dict(record_to_sums(record, weights, layouts))
    for segment, layout in layouts.items():
        states = DeviceStates(layout)
        for device, weight in devices.items():
            if any(f"{device}:{segment}.{field.name}" in record for field in layout.fields):
                state = layout.zeros()
                for field, view in layout.views(state):
                    _read(record, f"{device}:{segment}.{field.name}", view)
                states.states[device], states.weights[device] = state, weight
        if states.states:
            totals[segment] = states
    return totals


def record_to_sums(
    record: ArrayRecord, weights: Mapping[str, float], layouts: Mapping[str, Layout]
) -> dict[str, WeightedSum]:
    """Read weighted sums from a record, by segment; leaves out those of weight 0."""
    sums = {}
    for segment, layout in layouts.items():
        if weights.get(segment, 0) <= 0:
            continue
        total = WeightedSum(layout)
        total.weight = weights[segment]
        for dtype, size in layout.sizes.items():
            if dtype.is_floating_point:
                total.high[dtype], total.low[dtype] = (torch.zeros(size, dtype=torch.float64) for _ in range(2))
            else:
                total.counters[dtype] = torch.zeros(size, dtype=dtype)
        for field, view in layout.views(State({**total.high, **total.counters})):
            _read(record, f"{segment}.{field.name}", view)
        for field, view in layout.views(State({**total.low, **total.counters})):
            if f"{_LOW}{segment}.{field.name}" in record:
                _read(record, f"{_LOW}{segment}.{field.name}", view)
        sums[segment] = total
    return sums


def _read(record: ArrayRecord, key: str, into: Tensor) -> None:
    array = record.get(key)
    if array is None:
        raise WireError(f"a message has no array '{key}'; cloud and node must have the same model and cut")
    values = to_numpy(array)
    if values.shape != tuple(into.shape) or values.dtype != into.numpy().dtype:
        raise WireError(
            f"array '{key}' is {values.dtype}{list(values.shape)}, the model wants {into.dtype}{list(into.shape)}"
        )
    np.copyto(into.numpy(), values)


_FIELDS = (
    "device",
    "samples",
    "examples",
    "steps",
    "skipped",
    "loss_sum",
    "loss_weight",
    "up_bytes",
    "down_bytes",
    "model_bytes",
)
_NUMBERS, _LOSSES = ("device", "samples", "edge"), ("loss_sum", "loss_weight")
_MOST = 1 << 63
_HOPS = ("hop_up_bytes", "hop_down_bytes")  # of splits with two hops
_MOVED = ("edge", "moves", "moved_bytes", "wasted_steps", "restarts")  # only nodes with devices that moved send them


def reports_to_metrics(
    reports: Iterable[DeviceReport], weights: Mapping[str, float], counts: Mapping[str, int]
) -> MetricRecord:
    """Pack device reports column by column, the weight of each segment's sum, and a node's counts."""
    reports = list(reports)
    columns: dict[str, list[int] | list[float] | int | float] = {
        name: [getattr(report, name) for report in reports] for name in _FIELDS
    }
    if any(report.moves or report.wasted_steps for report in reports):
        columns |= {name: [getattr(report, name) for report in reports] for name in _MOVED}
    if any(report.hop_up_bytes for report in reports):
        columns |= {name: [getattr(report, name) for report in reports] for name in _HOPS}
    columns |= {f"weight.{name}": float(weight) for name, weight in weights.items()}
    return MetricRecord(columns | {f"count.{name}": count for name, count in counts.items()})


@dataclass(frozen=True)
class NodeReport:
    """A node's reply besides the arrays: device reports, weights of sums, and counts."""

    devices: list[DeviceReport]
    weights: dict[str, float]
    counts: dict[str, int]


def metrics_to_reports(metrics: MetricRecord) -> NodeReport:
    """Read what `reports_to_metrics` wrote; WireError for anything else, and for invalid numbers."""
    try:
        names = (*_FIELDS, *(_MOVED if "moves" in metrics else ()), *(_HOPS if _HOPS[0] in metrics else ()))
        columns = [_column(name, metrics[name]) for name in names]
        rows = [DeviceReport(**dict(zip(names, values))) for values in zip(*columns, strict=True)]
        weights = {name: _weight(value) for name, value in _named(metrics, "weight.")}
        counts = {name: int(value) for name, value in _named(metrics, "count.")}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WireError(f"a node's metrics are not device reports ({one_line(str(error), 200)})") from None
    return NodeReport(rows, weights, counts)


def _column(name: str, values: Any) -> list[Any]:
    """Read a column of reports: numbers of at least 0, except losses, which the cloud's count judges."""
    for value in values:
        if name in _NUMBERS:
            fine = is_count(value)
        elif name in _LOSSES:
            fine = isinstance(value, int | float) and not (name == "loss_weight" and value < 0)
        else:
            fine = isinstance(value, int | float) and 0 <= value < _MOST
        if not fine:
            raise ValueError(f"{name}={value!r}")
    return list(values)


def _weight(value: Any) -> float:
    if not (math.isfinite(weight := float(value)) and weight >= 0):
        raise ValueError(f"{weight} is no weight")
    return weight


def _named(metrics: MetricRecord, prefix: str) -> list[tuple[str, Any]]:
    return [(name.removeprefix(prefix), value) for name, value in metrics.items() if name.startswith(prefix)]
