"""Writes a profile and a comparison of rates as tables for people and as CSV."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fsl.simulations.profiling.rate_comparison import RateRow
from fsl.simulations.reports.csv_tables import csv_text
from fsl.simulations.reports.measures import NOTHING
from fsl.simulations.reports.tables import Table

from fsl.inference.planning import Prediction
from fsl.inference.profiles import ModelProfile, SecondsSpread, SideProfile, natural_bottlenecks
from fsl.run.observers import human_bytes


def profile_table(profile: ModelProfile) -> Table:
    """Returns a row for each point: what crosses, and what head and tail take."""
    energy = profile.power_active_watts is not None
    head = (
        "point", "elements", "bytes", "head p50, ms", "p90", "p99", "tail p50, ms", "p90", "p99",
        "MMAC head", "tail", "parameters head", "tail", "memory head", "tail", *(("head, mJ",) if energy else ()),
    )  # fmt: skip
    rows = []
    for point in profile.points:
        joules = profile.head_joules(point.name)
        rows.append(
            (
                point.name + (" *" if point.apart else ""),
                f"{point.crossing_elements:,}",
                human_bytes(point.crossing_bytes),
                *_milliseconds(point.head.seconds),
                *_milliseconds(point.tail.seconds),
                *(f"{side.macs / 1e6:.2f}" for side in (point.head, point.tail)),
                *(f"{side.parameters:,}" for side in (point.head, point.tail)),
                *(human_bytes(side.memory_bytes) for side in (point.head, point.tail)),
                *(() if joules is None else (f"{1e3 * joules:.2f}",)),
            )
        )
    return Table(head, tuple(rows))


def profile_csv(profile: ModelProfile) -> str:
    """Returns the same as CSV: seconds are of a batch, everything else in whole units."""
    lines: list[Mapping[str, Any]] = [
        {
            "point": point.name,
            "crossing_elements": point.crossing_elements,
            "crossing_bytes": point.crossing_bytes,
            **_cells("head", point.head),
            **_cells("tail", point.tail),
            "head_joules": profile.head_joules(point.name),
            "apart": point.apart,
        }
        for point in profile.points
    ]
    return csv_text(lines)


def rates_table(rows: Sequence[RateRow], raw: str) -> Table:
    """Returns a row for each rate; `raw` names the form in which the model's own input is sent."""
    formats = list(rows[0].images)
    head = ("Mbit/s", "best point", "best, ms", "all local", f"all remote, {raw}")
    lines = [
        (
            f"{row.mbit:g}",
            row.best.choice.title,
            *(_told(each) for each in (row.best, row.local, row.remote)),
            *(_told(row.images[name]) for name in formats),
        )
        for row in rows
    ]
    return Table((*head, *(f"remote, {name}" for name in formats)), tuple(lines), names=2)


def rates_csv(rows: Sequence[RateRow]) -> str:
    """Returns each prediction with its parts as CSV, in seconds."""
    lines: list[Mapping[str, Any]] = []
    for row in rows:
        for role, each in (("best", row.best), ("local", row.local), ("remote", row.remote), *row.images.items()):
            lines.append(
                {
                    "mbit": row.mbit,
                    "role": role,
                    "point": each.choice.point,
                    "seconds": _finite(each.seconds),
                    "head": each.head,
                    "encode": each.encode,
                    "up": _finite(each.up),
                    "rtt": each.rtt,
                    "decode": each.decode,
                    "tail": each.tail,
                    "down": _finite(each.down),
                    "up_bytes": each.spent.up_bytes,
                    "down_bytes": each.spent.down_bytes,
                    "device_joules": None if each.spent.device_joules is None else _finite(each.spent.device_joules),
                }
            )
    return csv_text(lines)


def about_lines(profile: ModelProfile) -> list[str]:
    """Describe the machine, and how well one pass tells what head and tail really take."""
    whole = profile.whole
    lines = [
        f"{profile.model} on {profile.machine}: {_count(profile.threads, 'thread')}, "
        f"batch {profile.batch}, {profile.repetitions} repetitions after {profile.warm_up}; the whole model takes "
        f"{1e3 * whole.p50:.3f} ms (p50), {1e3 * whole.p90:.3f} ms (p90)"
    ]
    for check in profile.checks:
        alone, in_pass = (check.head, check.tail), (check.head_in_pass, check.tail_in_pass)
        lines.append(
            f"check at {check.point}: head and tail, each run for itself, take {_sum(alone, check.whole)} against the "
            f"whole model; one pass tells {_sum(in_pass, check.whole)}"
        )
    if any(point.apart for point in profile.points):
        lines.append("* inside of a parallel branch, of which the head computes its own alone: run apart")
    return lines


def bottleneck_line(profile: ModelProfile, image: bool) -> str:
    """Describe natural bottlenecks, by elements, and by bytes where inputs are images of a byte a value."""
    elements = profile.points[0].crossing_elements
    found = natural_bottlenecks(profile.elements(), elements)
    told = f"natural bottlenecks (less crosses than the input's {elements:,} elements): {len(found)} of "
    told += f"{len(profile.cuts)} cuts"
    if image:
        in_bytes = natural_bottlenecks(profile.bytes(), elements)
        told += f" ({len(in_bytes)} by bytes against an image of a byte a value)"
    return f"{told}{': ' + ', '.join(found) if found else ''}"


def _cells(name: str, side: SideProfile) -> dict[str, Any]:
    seconds = side.seconds
    return {
        f"{name}_seconds_mean": seconds.mean,
        f"{name}_seconds_p50": seconds.p50,
        f"{name}_seconds_p90": seconds.p90,
        f"{name}_seconds_p99": seconds.p99,
        f"{name}_macs": side.macs,
        f"{name}_parameters": side.parameters,
        f"{name}_weight_bytes": side.weight_bytes,
        f"{name}_peak_bytes": side.peak_bytes,
    }


def _milliseconds(spread: SecondsSpread) -> tuple[str, ...]:
    return tuple(f"{1e3 * seconds:.3f}" for seconds in (spread.p50, spread.p90, spread.p99))


def _told(prediction: Prediction) -> str:
    return f"{1e3 * prediction.seconds:.2f}" if math.isfinite(prediction.seconds) else NOTHING


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sum(seconds: tuple[float, float], whole: float) -> str:
    head, tail = seconds
    return f"{1e3 * head:.3f} + {1e3 * tail:.3f} ms, {100 * ((head + tail) / whole - 1):+.1f} %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
