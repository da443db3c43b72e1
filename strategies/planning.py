"""Plans any strategy's round: assigns cohorts to nodes, builds messages, and adds up replies."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from fsl.errors import RunError
from fsl.messages.record_names import ARRAYS, CONFIG, LOST, PLAN, REMARKS, SETUP
from fsl.messages.round_plan import CohortTask, joined
from fsl.mobility import Move

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
