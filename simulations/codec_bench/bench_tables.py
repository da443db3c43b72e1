"""Writes a bench's rows as a table for people and as CSV."""

from collections.abc import Mapping, Sequence
from typing import Any

from fsl.simulations.codec_bench.results import RATIOS, Row, best_at, front_of
from fsl.simulations.reports.csv_tables import csv_text, spread_cells
from fsl.simulations.reports.measures import NOTHING, Measure
from fsl.simulations.reports.tables import Table

from fsl.run.observers import human_bytes


def table_of(rows: Sequence[Row], measure: Measure) -> Table:
    """Returns a row for each case, by bytes both ways; marks those that no other beats in bytes and metric."""
    base, front = rows[0], front_of(rows, not measure.lower_is_better)
    unit = " (points)" if measure.share else ""
    head: tuple[str, ...] = (
        "codec",
        "up",
        "down",
        "times fewer",
        measure.heading,
        "95 % interval",
        f"against identity{unit}",
    )
    head += ("device, ms", "edge, ms", "device, kFLOP", "edge, kFLOP", "parameters", "kept numbers", "front")
    lines = []
    for row in sorted(rows, key=lambda r: -r.both):
        spread = row.spread(measure.kind)
        lines.append(
            (
                row.title,
                human_bytes(row.up),
                human_bytes(row.down) if row.down else NOTHING,
                f"{base.both / row.both:.1f}",
                measure.spread(spread),
                measure.interval(spread),
                NOTHING if row is base else _difference(row, measure),
                *_costs(row),
                "yes" if row in front else "",
            )
        )
    return Table(head, tuple(lines))


def csv_of(rows: Sequence[Row], measure: Measure) -> str:
    """Returns the same as CSV: bytes and seconds are those of a sample."""
    base, front = rows[0], front_of(rows, not measure.lower_is_better)
    lines: list[Mapping[str, Any]] = []
    for row in rows:
        costs = row.costs
        lines.append(
            {
                "codec": row.title,
                "kind": row.kind,
                "seeds": len(row.values),
                "up_bytes": row.up,
                "down_bytes": row.down,
                "times_fewer": base.both / row.both,
                **spread_cells(measure.key, row.spread(measure.kind)),
                **spread_cells("difference", row.difference()),
                "difference_p": row.p,
                "device_seconds": None if costs is None else costs.device_seconds,
                "edge_seconds": None if costs is None else costs.edge_seconds,
                "device_flops": None if costs is None else costs.device_flops,
                "edge_flops": None if costs is None else costs.edge_flops,
                "parameters": None if costs is None else costs.parameters,
                "kept_numbers": None if costs is None else costs.kept,
                "front": row in front,
                "note": row.note,
            }
        )
    return csv_text(lines)


def best_lines(rows: Sequence[Row], measure: Measure) -> list[str]:
    """Describe the best codec at several ratios, and what the input itself says of all of them."""
    higher, base = not measure.lower_is_better, rows[0]
    codecs = [row for row in rows if row.kind == "codec"]
    lines = []
    for ratio in RATIOS:
        best, any_best = best_at(codecs, base, ratio, higher), best_at(rows, base, ratio, higher)
        told = "no codec" if best is None else f"{best.title}, {_value(best, measure)}"
        if any_best is not None and any_best.kind == "image":
            told += f"; the input itself is better: {any_best.title}, {_value(any_best, measure)}"
        lines.append(f"{ratio} times fewer bytes both ways, or at least 95 % of that: {told}")
    beaten = [row for row in codecs if any(_beats(image, row, higher) for image in rows if image.kind == "image")]
    if len(codecs) < len(rows):
        lines.append(
            f"{len(beaten)} of {len(codecs)} rows with smashed data are beaten by a row in which the input itself is "
            "sent: fewer bytes, and no worse"
        )
    return lines


def _beats(image: Row, row: Row, higher: bool) -> bool:
    no_worse = image.mean >= row.mean if higher else image.mean <= row.mean
    return image.both < row.both and no_worse


def _value(row: Row, measure: Measure) -> str:
    return f"{measure.key} {measure.spread(row.spread(measure.kind))}{' %' if measure.share else ''}"


def _difference(row: Row, measure: Measure) -> str:
    spread = row.difference()
    if spread is None:
        return NOTHING
    scale = 100.0 if measure.share else 1.0
    told = f"{scale * spread.mean:+.2f}"
    if spread.low is None or spread.high is None:
        return told
    return f"{told} [{scale * spread.low:+.2f}, {scale * spread.high:+.2f}]"


def _costs(row: Row) -> tuple[str, ...]:
    if row.costs is None:
        return (NOTHING,) * 6
    costs = row.costs
    times = (f"{1e3 * seconds:.3f}" for seconds in (costs.device_seconds, costs.edge_seconds))
    flops = (f"{each / 1e3:,.0f}" for each in (costs.device_flops, costs.edge_flops))
    return (*times, *flops, f"{costs.parameters:,}", f"{costs.kept:,}")
