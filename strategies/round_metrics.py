"""Computes a round's metrics from its devices' reports: what metrics.jsonl gets for each round."""

from collections.abc import Callable, Mapping, Sequence

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
) -> dict[str, float]:
    """What a round would take on the run's devices, edges and links, when it begins at second `start` of the run."""
    trainer = None if spec is None else spec.build()
    loads = [
        DeviceLoad(
            r.device,
            edge_of(r.device),
            r.steps + r.wasted_steps,
            _examples(r),
            r.up_bytes,
            r.down_bytes,
            r.model_bytes,
            stays(r, edge_of(r.device), [move for move in moves if move.device == r.device], on_move),
            (cuts or {}).get(r.device, 0),
        )
        for r in reports
    ]
    cost = costs.round(loads, serving_of(trainer, fronts), start)
    measured = {"sim_seconds": cost.seconds} | ({} if cost.joules is None else {"energy_joules": cost.joules})
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
