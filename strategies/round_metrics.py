"""Computes a round's metrics from its devices' reports: what metrics.jsonl gets for each round."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fsl.costs import DeviceLoad, serving_of
from fsl.importing.spec import Spec
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import Fronts
from fsl.mobility import Move, OnMove, Stay, route
from fsl.settings.federation_settings import RoundPricer


def sums(reports: Sequence[DeviceReport]) -> dict[str, float | int]:
    """Add up a round's metrics from its devices' reports."""
    columns: dict[str, float | int] = {
        name: sum(getattr(r, name) for r in reports)
        for name in ("examples", "skipped", "up_bytes", "down_bytes", "model_bytes")
    }
    # Reports are in order of device id, so that sums do not depend on the division over nodes.
    weight = sum(r.loss_weight for r in reports)
    loss = sum(r.loss_sum for r in reports) / weight if weight else float("nan")
    return {"train_loss": loss, "devices": len(reports), **columns}


def hops(reports: Sequence[DeviceReport]) -> dict[str, int]:
    """Add up the bytes between edges and the server above them, headers included: both ways, up, and down."""
    up, down = (sum(getattr(r, name) for r in reports) for name in ("hop_up_bytes", "hop_down_bytes"))
    return {"hop_bytes": up + down, "hop_up_bytes": up, "hop_down_bytes": down}


def simulated(
    costs: RoundPricer,
    reports: Sequence[DeviceReport],
    spec: Spec | None,
    fronts: Fronts,
    edge_of: Callable[[int], int],
    start: float,
    moves: Sequence[Move] = (),
    on_move: OnMove = "migrate",
    cuts: Mapping[int, int] | None = None,
    late: Sequence[DeviceLoad] = (),
    deadline: float | None = None,
    merges: Mapping[int, int] = MappingProxyType({}),
) -> dict[str, float]:
    """What a round would take on the run's devices, edges and links, when it begins at second `start` of the run.

    Of `late` devices it counts what they would do until `deadline`, bytes too, which are then among the figures.
    `merges`: how often a device took the front and gave it back, if not once.
    """
    trainer = None if spec is None else spec.build()
    moves_by: dict[int, list[Move]] = {}
    for move in moves:
        moves_by.setdefault(move.device, []).append(move)
    loads = [
        DeviceLoad(
            r.device,
            edge_of(r.device),
            r.steps + r.wasted_steps,
            _examples(r),
            r.up_bytes,
            r.down_bytes,
            r.model_bytes,
            stays(r, edge_of(r.device), moves_by.get(r.device, []), on_move),
            (cuts or {}).get(r.device, 0),
            r.hop_up_bytes,
            r.hop_down_bytes,
            merges.get(r.device, 1),
        )
        for r in reports
    ]
    names = {load.device for load in late}
    limit = math.inf if deadline is None else deadline
    cost = costs.round([*loads, *late], serving_of(trainer, fronts), start, names, limit)
    measured = {"sim_seconds": cost.seconds} | ({} if cost.joules is None else {"energy_joules": cost.joules})
    if late:
        spent = [device for device in cost.devices if device.device in names]
        measured |= {
            name: sum(getattr(one, name) for one in spent) for name in ("up_bytes", "down_bytes", "model_bytes")
        }
    return measured | ({"migration_seconds": cost.moving_s} if moves else {})


def stays(report: DeviceReport, home: int, moves: Sequence[Move], on_move: OnMove) -> tuple[Stay, ...]:
    """Returns a device's stays at one edge after another in its round; empty for one that did not move."""
    if not report.moves:
        return ()
    legs = route(home, moves, report.steps)[: report.moves]
    found, done, at, bytes = [], 0, home, 0
    for left_after, edge in legs:
        found.append(Stay(at, left_after - done, bytes))
        done, at, bytes = (left_after if on_move == "migrate" else 0), edge, report.moved_bytes // report.moves
    return (*found, Stay(at, report.steps - done, bytes))


def movements(reports: Sequence[DeviceReport], counts: Mapping[str, int]) -> dict[str, int]:
    """Add up a round's moves: their number, bytes between edges, served uploads, and repeated ones."""
    wasted = sum(r.wasted_steps for r in reports)
    return {
        "moves": sum(r.moves for r in reports),
        "migration_bytes": sum(r.moved_bytes for r in reports),
        "uploads": sum(r.steps for r in reports) + wasted,
        "wasted_steps": wasted,
        "dropped": counts.get("dropped", 0),
    }


def _examples(report: DeviceReport) -> int:
    """Estimate the rows of all uploads, wasted ones included, from the average batch."""
    return report.examples + (round(report.examples * report.wasted_steps / report.steps) if report.steps else 0)
