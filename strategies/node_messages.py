"""Any strategy's messages to nodes, and their replies: assigns cohorts to nodes, adds up what they trained."""

import heapq
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from fsl.errors import RunError
from fsl.flower.records import metrics_to_reports, record_to_totals
from fsl.messages.record_names import ARRAYS, CONFIG, LOST, METRICS, PLAN, REMARKS, SETUP
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask, DeviceTask, joined
from fsl.mobility import Move
from fsl.segments.finite import finite_total
from fsl.segments.states import Layout
from fsl.segments.sums import Total, merge_totals
from fsl.settings.placement import Collected

log = logging.getLogger(__name__)


def assign(
    cohorts: Sequence[CohortTask],
    nodes: Sequence[int],
    divisible: bool,
    moves: Sequence[Move] = (),
    samples: Callable[[int], int] | None = None,
) -> dict[int, list[CohortTask]]:
    """Assign cohorts to nodes: whole cohorts in turn, or devices where cohorts are `divisible`.

    Devices go by their `samples` to whichever node has least to do, those with most first; without samples all weigh
    the same. One node trains all cohorts between which devices move, since nodes cannot exchange devices in a round.
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
    loads = [(0, place) for place in range(len(nodes))]  # a heap: who has least to do is first
    for cohort in cohorts:
        shares: dict[int, list[DeviceTask]] = {}
        held = {task.device: 1 if samples is None else samples(task.device) for task in cohort.devices}
        for task in sorted(cohort.devices, key=lambda task: (-held[task.device], task.device)):
            load, place = loads[0]
            shares.setdefault(nodes[place], []).append(task)
            heapq.heapreplace(loads, (load + held[task.device], place))
        for node, tasks in shares.items():
            devices = tuple(sorted(tasks, key=lambda task: task.device))
            work.setdefault(node, []).append(replace(cohort, devices=devices))
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


def added_up(replies: Sequence[Message], round: int, layouts: Mapping[str, Layout]) -> Collected:
    """Add up the replies of nodes that may host any device, in order of node id."""
    replies = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
    good = succeeded(replies, round)
    totals: dict[str, Total] = {}
    reports: list[DeviceReport] = []
    counts: Counter[str] = Counter()
    lost: dict[int, str] = {}
    for reply in good:
        said = metrics_to_reports(reply.content.metric_records[METRICS])
        weights = {report.device: float(report.samples) for report in said.devices}
        record = reply.content.array_records[ARRAYS]
        lost |= lost_in(reply)
        found = record_to_totals(record, said.weights, layouts, weights)
        if bad := next((name for name, total in found.items() if not finite_total(total)), None):
            lost |= {report.device: f"the {bad} that came back is not finite" for report in said.devices}
            continue
        merge_totals(totals, found)
        reports.extend(said.devices)
        counts.update(said.counts)
    reports.sort(key=lambda report: report.device)
    return Collected(totals, reports, counts, lost, len(replies) - len(good))


def reasons(lost: Mapping[int, str]) -> str:
    """Returns why devices were lost, the first three of them, for an error message."""
    shown = [f"device {device}: {reason}" for device, reason in list(lost.items())[:3]]
    return "; ".join([*shown, "..."] if len(lost) > len(shown) else shown) or "none was selected that is there"
