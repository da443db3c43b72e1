"""What every strategy needs of a round: who trains what where, messages out, replies in."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from fsl.costs import CostModel, DeviceLoad, serving_of
from fsl.errors import RunError
from fsl.names import ARRAYS, CONFIG, PLAN, SETUP
from fsl.plan import CohortTask, Fronts, Spec
from fsl.reports import DeviceReport
from fsl.targets import locate

log = logging.getLogger(__name__)


def assign(cohorts: Sequence[CohortTask], nodes: Sequence[int], divisible: bool) -> dict[int, list[CohortTask]]:
    """Which node trains which cohorts: whole cohorts in turn, or equal shares of each where it may be divided."""
    if not nodes:
        raise RunError("no node is connected, so nobody can train; start nodes, then resume")
    work: dict[int, list[CohortTask]] = {}
    if not divisible:
        for cohort in cohorts:
            work.setdefault(nodes[cohort.edge % len(nodes)], []).append(cohort)
        return work
    for cohort in cohorts:
        for node, chunk in zip(nodes, chunks(cohort.devices, len(nodes))):
            if chunk:
                work.setdefault(node, []).append(replace(cohort, devices=tuple(chunk)))
    return work


def chunks(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """The items in so many parts behind each other, whose sizes differ by one at most."""
    bounds = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in zip(bounds, bounds[1:])]


def message(plan: str, arrays: ArrayRecord, node: int, kind: str, round: int, setup: str) -> Message:
    """A plan and its arrays for one node, and the run's setup for a node that does not know it."""
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({PLAN: plan, **({SETUP: setup} if setup else {})})})
    return Message(content, node, kind, group_id=str(round))


def succeeded(replies: Sequence[Message], round: int) -> list[Message]:
    """The replies with content; a node that is gone is skipped, a node whose code raised ends the run."""
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


def sums(reports: Sequence[DeviceReport]) -> dict[str, float | int]:
    """A round's metrics, from the reports of its devices in order of id."""
    examples = sum(r.examples for r in reports)
    columns: dict[str, float | int] = {
        name: sum(getattr(r, name) for r in reports)
        for name in ("examples", "skipped", "up_bytes", "down_bytes", "model_bytes")
    }
    # The reports are in order of device id, so the sum does not depend on how nodes shared them.
    loss = sum(r.loss for r in reports) / examples if examples else float("nan")
    return {"train_loss": loss, "devices": len(reports), **columns}


def simulated(
    costs: CostModel,
    reports: Sequence[DeviceReport],
    spec: Spec | None,
    fronts: Fronts,
    edge_of: Callable[[int], int],
    start: float,
) -> dict[str, float]:
    """What a round would take on the run's devices, edges and links, when it begins at second `start` of the run."""
    trainer = None if spec is None else locate(spec.target)(**spec.kwargs)
    loads = [
        DeviceLoad(r.device, edge_of(r.device), r.steps, r.examples, r.up_bytes, r.down_bytes, r.model_bytes)
        for r in reports
    ]
    cost = costs.round(loads, serving_of(trainer, fronts), start)
    return {"sim_seconds": cost.seconds} | ({} if cost.joules is None else {"energy_joules": cost.joules})
