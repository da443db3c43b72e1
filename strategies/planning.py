"""Plans any strategy's round: assigns cohorts to nodes, builds messages, and adds up replies."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from fsl.costs import DeviceLoad, serving_of
from fsl.errors import RunError
from fsl.importing.spec import Spec
from fsl.messages.record_names import ARRAYS, CONFIG, LOST, PLAN, REMARKS, SETUP
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask, Fronts, joined
from fsl.mobility import Move, OnMove, Stay, route
from fsl.settings.federation_settings import RoundPricer

log = logging.getLogger(__name__)


def assign(
    cohorts: Sequence[CohortTask], nodes: Sequence[int], divisible: bool, moves: Sequence[Move] = ()
) -> dict[int, list[CohortTask]]:
    """Assign cohorts to nodes: whole cohorts in turn, or equal shares of each where they are `divisible`.

    One node trains all cohorts between which devices move, since nodes cannot exchange devices in a round.
    """
    if not nodes:
        raise RunError("no node is connected, so nobody can train; start nodes, then resume")
    work: dict[int, list[CohortTask]] = {}
    if not divisible:
        groups = joined(cohorts, moves)
        if len(groups) < min(len(nodes), len(cohorts)):
            log.info("%d cohorts between which devices move train on %d nodes", len(cohorts), len(groups))
        for group in groups:
            work.setdefault(nodes[group[0].edge % len(nodes)], []).extend(group)
        return work
    for cohort in cohorts:
        for node, chunk in zip(nodes, chunks(cohort.devices, len(nodes))):
            if chunk:
                work.setdefault(node, []).append(replace(cohort, devices=tuple(chunk)))
    return work


def chunks(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Divide items into `count` consecutive parts, whose sizes differ by one at most."""
    bounds = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in zip(bounds, bounds[1:])]


def message(plan: str, arrays: ArrayRecord, node: int, kind: str, round: int, setup: str) -> Message:
    """Build a node's message: a plan, its arrays, and the run's setup for a node that does not know it."""
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({PLAN: plan, **({SETUP: setup} if setup else {})})})
    return Message(content, node, kind, group_id=str(round))


def succeeded(replies: Sequence[Message], round: int) -> list[Message]:
    """Returns the replies with content; skips a node that is gone, and raises where a node's code raised."""
    good = []
    for reply in replies:
        if not reply.has_error():
            good.append(reply)
        elif reply.error.code in (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.LOAD_CLIENT_APP_EXCEPTION):
            raise RunError(f"round {round}: node {reply.metadata.src_node_id} failed: {reply.error.reason}")
        else:
            log.warning("round %d goes on without node %d: %s", round, reply.metadata.src_node_id, reply.error.reason)
    if not good:
        reasons = "; ".join(str(reply.error.reason) for reply in replies) or "no reply came"
        raise RunError(f"round {round}: every node is gone ({reasons}); resume the run when they are back")
    return good


def lost_in(reply: Message) -> dict[int, str]:
    """Returns the devices whose work a node could not use, and why."""
    said = json.loads(str(reply.content.config_records.get(REMARKS, ConfigRecord()).get(LOST, "{}")))
    return {int(device): str(reason)[:300] for device, reason in said.items()}


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
