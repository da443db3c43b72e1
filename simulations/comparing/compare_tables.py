"""Writes a comparison as a table for people and as CSV."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fsl.simulations.comparing.compared_streams import ComparedRow
from fsl.simulations.reports.csv_tables import csv_text
from fsl.simulations.reports.measures import NOTHING
from fsl.simulations.reports.tables import Table

from fsl.inference.comparison import common_of_policy
from fsl.metrics.common_metrics import CommonValues
from fsl.run.observers import human_bytes


def compare_table(rows: Sequence[ComparedRow], link: str, load: float, quality: str) -> Table:
    """Returns a row for each policy over a link at a load; `quality` names what answers are scored by."""
    own = [row.figures for row in rows if (row.link, row.load) == (link, load)]
    energy = any(each.joules is not None for each in own)
    head = (
        f"{link} Mbit/s, load {load:g}" if _is_number(link) else f"{link}, load {load:g}",
        quality, "bytes up", "mean, ms", "p50", "p90", "p99", "in time, %",
        *(("energy, mJ",) if energy else ()), "encoder", "switches",
    )  # fmt: skip
    lines = []
    for each in own:
        times = (each.mean, each.p50, each.p90, each.p99)
        lines.append(
            (
                each.policy,
                f"{100 * each.quality:.1f} %" if quality == "accuracy" else f"{-each.quality:.4f}",
                human_bytes(each.up_bytes),
                *(("overloaded", NOTHING, NOTHING, NOTHING) if each.overloaded else map(_milli, times)),
                f"{100 * each.in_time:.0f}",
                *((_milli(each.joules),) if energy else ()),
                human_bytes(each.encoder_bytes),
                f"{each.switches}",
            )
        )
    return Table(head, tuple(lines))


def compare_csv(rows: Sequence[ComparedRow]) -> str:
    """Returns all rows as CSV: seconds, bytes and joules of a request, shares, and how often which choice was made."""
    lines: list[Mapping[str, Any]] = []
    for row in rows:
        figures = {name: value for name, value in vars(row.figures).items() if name != "choices"}
        choices = "; ".join(f"{title}: {times}" for title, times in row.figures.choices.items())
        lines.append({"link": row.link, "load": row.load, **figures, "exact": row.exact, "choices": choices})
    return csv_text(lines)


def common_of_rows(rows: Sequence[ComparedRow], has_accuracy: bool, first: bool = False) -> dict[str, CommonValues]:
    """Returns the common metrics of each policy over each link at each load; `first`: over the first ones alone."""
    own = [row for row in rows if not first or (row.link, row.load) == (rows[0].link, rows[0].load)]
    several = len({(row.link, row.load) for row in own}) > 1
    return {
        f"{row.figures.policy}{f', {row.link}, load {row.load:g}' if several else ''}": common_of_policy(
            row.figures, has_accuracy=has_accuracy
        )
        for row in own
    }


def _milli(value: float | None) -> str:
    return NOTHING if value is None or math.isinf(value) else f"{1e3 * value:,.1f}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
