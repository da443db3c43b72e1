"""Places a round on the nodes that host its devices and edges, and collects what they answer."""

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fsl.deployment.cloud.answers import Share, check_answer, check_arrivals, check_scores
from fsl.deployment.cloud.closing import least, refuse_without_nodes
from fsl.deployment.cloud.enrolled import TABLE
from fsl.deployment.cloud.frozen_weights import FrozenWeights
from fsl.deployment.cloud.line_grid import LineGrid, pull_replies, wait_for_reply
from fsl.deployment.cloud.member import Member
from fsl.deployment.cloud.members import Members
from fsl.deployment.cloud.refused_plans import refuse_plan
from fsl.deployment.cloud.round_arrays import RoundArrays
from fsl.deployment.cloud.round_results import HEAVIEST, RoundResults
from fsl.deployment.cloud.routes import Routes
from fsl.deployment.cloud.same_people import refuse_other_people
from fsl.deployment.cloud.servers_above import ServersAbove
from fsl.deployment.cloud.terms import Terms
from fsl.deployment.node.work_done import RESTARTED
from fsl.errors import RunError, WireError
from fsl.flower.frozen_records import with_frozen_arrays
from fsl.messages.identifiers import is_count, is_owner
from fsl.messages.node_part import EdgePart, NodePart, Ticket
from fsl.messages.record_names import ARRAYS, CONFIG, LOST, METRICS, PART, PLAN, REMARKS, SETUP
from fsl.messages.round_plan import CohortTask, DeviceTask, EvaluatePlan, RoundPlan
from fsl.quoting import one_line
from fsl.segments.frozen import Frozen
from fsl.settings.placement import Collected
from fsl.split.placing import TOP
from fsl.wire.device.sealed_fronts import new_key
from fsl.wire.line.cloud_lines import CloudLines
from fsl.wire.tokens import Claims, Signer, fingerprint

log = logging.getLogger(__name__)
_WAY = 10.0  # seconds that a node's answer takes to the cloud, on a busy machine
_POLL = 0.5  # seconds between two polls for replies; Flower's own poll takes three
_CHECK = 2.0  # seconds between two looks, in the middle of a round, who has lost its place
Needed = Callable[[Sequence[DeviceTask]], ArrayRecord]


@dataclass
class _AskedRound:
    """A round on its way: each node's part, and the devices of each edge."""

    plan: RoundPlan
    cohorts: list[CohortTask]
    samples: dict[int, int]
    nodes: dict[int, list[int]] = field(default_factory=dict)  # by node, the devices that depend on it
    nodes_by_role: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # edges, devices, tops
    lost: dict[int, str] = field(default_factory=dict)
    start: ArrayRecord | None = None  # the round's first arrays, to measure updates from; None without max_norm
    shares: dict[int, Share] = field(default_factory=dict)  # by node
    others: dict[int, int] = field(default_factory=dict)  # by device, how many more edges it may go to
    edges: dict[int, int] = field(default_factory=dict)  # by node, the edge that it hosts


class Roster:
    """Places a run's devices and edges on the nodes that host them."""

    def __init__(self, setup: str, terms: Terms, folder: Path | None = None, lines: CloudLines | None = None):
        self.setup = setup  # the run's configuration, as messages carry it
        self.terms = terms
        self.signer = Signer()
        self.members = Members(setup, terms, None if folder is None else folder / TABLE, lines)
        self._fence = 0
        self._weights = FrozenWeights({})
        self._asked: _AskedRound | None = None
        self._scored: dict[int, frozenset[int]] = {}  # the devices that each node was last asked to evaluate

    def know_frozen(self, frozen: Mapping[str, Frozen]) -> None:
        """Take the model's frozen parameters, by segment, to send them once to each node that has others."""
        self._weights = FrozenWeights(frozen)

    def look(self, grid: Grid, devices: int, edges: int, first: bool) -> bool:
        """Look for nodes; returns False where any node may host whole cohorts, as in a simulation."""
        placed = self.members.look(grid, devices, edges, first, edges if TOP in self._weights.segments else 0)
        if not placed:
            refuse_without_nodes(**self.terms.closing)
        return placed

    @property
    def roams(self) -> bool:
        """Whether devices may go to another edge in the middle of a round."""
        return self.terms.roaming

    @property
    def samples(self) -> Mapping[int, int]:
        """The n_k of each device that is there, as its node says; not capped, since privacy accounts need it."""
        return {device: count for member in self.members.online for device, count in member.samples.items()}

    @property
    def counted(self) -> Mapping[int, int]:
        """The n_k by which each device that is there counts."""
        return {device: self._counted(count) for device, count in self.samples.items()}

    def train_messages(self, plan: RoundPlan, cohorts: Sequence[CohortTask], needed: Needed) -> list[Message]:
        """Build one message for each node with a part in the round."""
        refuse_plan(plan, self.terms)
        self._fence = max(self._fence + 1, time.time_ns())
        plan = replace(plan, one_by_one=True)
        asked = self._asked = _AskedRound(plan, [], dict(self.counted))
        refuse_other_people(self.members.online)
        asked.start = needed([DeviceTask(device=0)]) if self.terms.max_norm is not None else None
        parts = self._parts(asked, cohorts, self.samples)
        text, every = plan.to_json(), self.terms.replicate_every
        messages, arrays = [], RoundArrays()
        here = {member.node: member for member in self.members.online}
        for node, whole in sorted(parts.items()):
            whole = replace(whole, replicate_every=every, deadline=self.terms.deadline)
            asked.shares[node] = Share.of(whole)
            mine = arrays.of(whole, needed(whole.own))
            lacks = self._weights.lacking(here[node], filter(whole.holds, self._weights.segments))
            mine = with_frozen_arrays(mine, lacks)
            messages.append(self._message(node, MessageType.TRAIN, text, mine, whole, plan.round))
        return messages

    def _parts(self, asked: _AskedRound, cohorts: Sequence[CohortTask], rows: Mapping[int, int]) -> dict[int, NodePart]:
        """Returns each node's part in a round, by node; notes in `asked` who depends on whom, and who is not there.

        `rows`: those of each device, of which the round's uploads are.
        """
        plan, nodes_by_role = asked.plan, asked.nodes_by_role
        hosts = {d: member for member in self.members.online for d in member.samples}
        edges = {member.edge: member for member in self.members.online if member.edge is not None}
        routes, above = Routes(plan, cohorts, edges, self.terms.roaming), ServersAbove(plan, self.members.online)
        cohorts = [
            *cohorts,
            *(CohortTask(edge=edge, devices=()) for edge in routes.visited - {c.edge for c in cohorts}),
        ]
        parts: dict[int, NodePart] = {}
        relay_key = new_key().hex() if plan.fronts == "relayed" else ""
        for cohort in cohorts:
            there = tuple(replace(task, samples=rows[task.device]) for task in cohort.devices if task.device in hosts)
            absent = [task.device for task in cohort.devices if task.device not in hosts]
            asked.lost.update(dict.fromkeys(absent, "no node that hosts it is online"))
            edge = edges.get(cohort.edge)
            if plan.trainer is not None and (edge is None or above.missing(cohort.edge)):
                what = f"{'' if edge is None else 'the server above '}edge {cohort.edge}"
                asked.lost.update(dict.fromkeys((t.device for t in there), f"no node that hosts {what} is online"))
                continue
            if not there and cohort.edge not in routes.visited:
                continue
            cohort = replace(cohort, devices=there)
            asked.cohorts.append(cohort)
            if edge is not None and plan.trainer is not None:
                part = EdgePart(cohort=cohort, cloud_key=self.signer.public_key.hex(), fence=self._fence)
                part = replace(part, peers=routes.peers(cohort.edge), visitors=routes.visitors(cohort.edge))
                part, top, its = above.of(part, edge, partial(self._token_above, plan, hosts, cohort.edge))
                if top is not None and its is not None:
                    old = parts.get(top.node, NodePart())
                    parts[top.node] = replace(old, tops=(*old.tops, its))
                    asked.nodes.setdefault(top.node, []).extend(t.device for t in there)
                    nodes_by_role["tops"].add(top.node)
                old = parts.get(edge.node, NodePart())
                parts[edge.node] = replace(old, edges=(*old.edges, part))
                asked.nodes.setdefault(edge.node, []).extend(t.device for t in there)
                asked.edges[edge.node] = cohort.edge
                nodes_by_role["edges"].add(edge.node)
            for task in there:
                host = hosts[task.device]
                node = host.node
                old = parts.get(node, NodePart())
                asked.nodes.setdefault(node, []).append(task.device)
                nodes_by_role["devices"].add(node)
                if plan.trainer is None or edge is None:
                    parts[node] = replace(old, alone=(*old.alone, task))
                else:
                    others = routes.others(task.device, cohort.edge)
                    asked.others[task.device] = len(others)
                    allowed = (cohort.edge, *(number for number, _ in others))
                    token = self._token(plan, host, task.device, rows[task.device], allowed).hex()
                    ticket = Ticket(task=task, edge=cohort.edge, address=edge.address, token=token, others=others)
                    parts[node] = replace(old, tickets=(*old.tickets, ticket), relay_key=relay_key)
        return parts

    def exchange(self, grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
        """Send a round's messages and wait for the replies.

        A node that restarted meanwhile never answers, and Flower does not report it. So when all edges (or all devices)
        have answered, the others get as long as they may still wait for somebody themselves, plus an answer's way: for
        a message, or where a node failed, perhaps before it came to anybody, for its devices or its edge to appear.
        """
        roams = self._asked is not None and any(self._asked.others.values())
        grace = self.terms.straggler * (2 if roams else 1) + _WAY  # where devices move, edges also wait for each other
        nodes_by_role = self._asked.nodes_by_role if self._asked is not None else {}
        if any(message.metadata.message_type == MessageType.EVALUATE for message in messages):
            nodes_by_role, timeout = {}, min(timeout, self.terms.answer)
        elif (longest := self._longest()) is not None:
            timeout = min(timeout, longest + _WAY)
        waiting = set(grid.push_messages(messages))
        sent = {message.metadata.message_id: message for message in messages}
        replies: list[Message] = []
        begun = checked = time.monotonic()
        deadline, ended = begun + timeout, False
        while waiting and time.monotonic() < deadline:
            if time.monotonic() - checked > _CHECK:
                self.members.check(grid)
                checked = time.monotonic()
            new = pull_replies(grid, {id: sent[id] for id in sorted(waiting)})
            replies += new
            waiting -= {reply.metadata.reply_to_message_id for reply in new}
            answered = {reply.metadata.src_node_id for reply in replies}
            if not ended and any(nodes and nodes <= answered for nodes in nodes_by_role.values()):
                appear = begun + self.terms.join + _WAY if any(reply.has_error() for reply in replies) else 0.0
                ended, deadline = True, min(deadline, max(time.monotonic() + grace, appear))
            waiting -= {id for id in waiting if sent[id].metadata.dst_node_id in self.members.out}
            if waiting and not new:
                wait_for_reply(grid, waiting, min(_POLL, max(0.0, deadline - time.monotonic())))
        self.members.check()
        if isinstance(grid, LineGrid):
            grid.forget(sent)
        return [reply for reply in replies if self._is_own(reply)]

    def _is_own(self, reply: Message) -> bool:
        """Returns whether a reply is a member's, and its scores, if any, are of devices that its node was asked for."""
        if reply.metadata.src_node_id in self.members.out:
            return False
        if reply.has_error() or reply.metadata.message_type != MessageType.EVALUATE:
            return True
        node = reply.metadata.src_node_id
        try:
            check_scores(self._scored.get(node, frozenset()), reply.content)
        except WireError as error:
            log.warning("%s: %s", self.members.label(node), error)
            return False
        return True

    def _longest(self) -> float | None:
        """Returns the seconds after which no node works on a round any more; None without a deadline."""
        if self.terms.deadline is None or self._asked is None:
            return None
        trainer = self._asked.plan.trainer
        kind = None if trainer is None else trainer.locate()
        return self.terms.deadline * (1 if kind is None or kind.divisible or kind.asynchronous else 2)

    def collect(self, replies: Iterable[Message], layouts: Mapping[str, Any]) -> Collected:
        """Add up the work of devices that finished at both ends of the wire, and say why the others did not."""
        asked = self._asked
        assert asked is not None
        results = RoundResults(asked.plan, asked.cohorts, asked.samples, layouts, asked.lost)
        answered, failed = set(), 0
        restarted: dict[int, int] = {}
        arrivals: dict[int, tuple[int, ...]] = {}
        ill: list[int] = []  # failed nodes, which may have restarted: asked again what they host
        for reply in sorted(replies, key=lambda m: m.metadata.src_node_id):
            node = reply.metadata.src_node_id
            answered.add(node)
            if reply.has_error():
                failed += 1
                ill.append(node)
                for device in asked.nodes.get(node, []):
                    results.lose(device, f"{self.members.label(node)}: {one_line(str(reply.error.reason), 1000)}")
                continue
            content, mine = reply.content, asked.nodes.get(node, [])
            try:
                share = asked.shares[node]
                served = share.served | share.topped
                rows = sum(self.samples.get(device, 0) for device in served) * asked.plan.local_epochs
                arrays, metrics = check_answer(share, content)
                if asked.plan.fronts == "merged" and node in asked.edges:
                    arrivals[asked.edges[node]] = check_arrivals(share, content)
                results.add(arrays, metrics, HEAVIEST * rows)
            except WireError as error:
                failed += 1
                ill.append(node)
                results.discard(mine, f"{self.members.label(node)}: {error}")
                continue
            told = _restarted(content.metric_records[METRICS])
            restarted |= {device: round for device, round in told.items() if device in asked.shares[node].own}
            for device, reason in _remarks(content).items():
                if device in mine:
                    results.lose(device, reason)
        for node in asked.nodes.keys() - answered:
            why = f": {out}" if (out := self.members.out.get(node)) else " did not answer"
            for device in asked.nodes[node]:
                results.lose(device, f"{self.members.label(node)}{why}")
            ill.append(node)
        for node in ill:
            self.members.forget(node)
        if asked.start is not None and self.terms.max_norm is not None:
            results.measure(asked.start, self.terms.max_norm)
        collected = results.collected(failed)
        self._refuse_few(asked, collected)
        again = {d: n for d in collected.lost if (n := asked.others.get(d))}
        counted = {report.device for report in collected.reports}
        arrivals = {e: tuple(n for n in order if n >= 0 or -1 - n in counted) for e, order in arrivals.items()}
        return replace(collected, again=again, restarted=restarted, arrivals=arrivals)

    def _refuse_few(self, asked: _AskedRound, collected: Collected) -> None:
        """Raise RunError for a round in which fewer devices finished than the quorum; the run can resume before it."""
        devices, finished = len(collected.lost) + len(collected.reports), len(collected.reports)
        if self.terms.quorum is None or finished >= (needed := least(self.terms.quorum, devices)):
            return
        lost = "; ".join(f"device {device}: {reason}" for device, reason in list(collected.lost.items())[:3])
        raise RunError(
            f"round {asked.plan.round}: {finished} of {devices} devices finished, and deployment.quorum="
            f"{self.terms.quorum} asks for {needed}; nothing of the round counts ({lost}); resume goes on from "
            "the round before"
        )

    def evaluate_messages(
        self, text: Callable[[Sequence[DeviceTask]], str], tasks: Sequence[DeviceTask], needed: Needed, round: int
    ) -> list[Message]:
        """Build messages that ask nodes to evaluate their devices' private fronts."""
        messages = []
        for member in self.members.online:
            here = [task for task in tasks if task.device in member.samples]
            if here:
                self._scored[member.node] = frozenset(task.device for task in here)
                arrays = with_frozen_arrays(needed(here), self._weights.lacking(member, self._weights.segments))
                messages.append(self._message(member.node, MessageType.EVALUATE, text(here), arrays, None, round))
        return messages

    def scoring_messages(
        self, plan: EvaluatePlan, cohort: CohortTask, needed: Needed, scorer: int | None
    ) -> list[Message]:
        """Build messages that ask parties and their edge to score the model together, in sessions as those of training.

        Tasks count test rows. `scorer`: the party whose tail counts what it finds; None: the edge counts. The node of
        another that tells scores is not believed. RunError where a party or the edge is not there.
        """
        assert plan.sessions is not None
        self._fence = max(self._fence + 1, time.time_ns())
        tested = {device: member.tested for member in self.members.online for device in member.samples}
        asked = _AskedRound(plan.sessions, [], tested)
        parts = self._parts(asked, [cohort], tested)
        if asked.lost:
            device, reason = next(iter(asked.lost.items()))
            raise RunError(f"round {plan.round}: the model is not scored without device {device}: {reason}")
        messages = []
        for node, part in sorted(parts.items()):
            part = replace(part, deadline=self.terms.deadline)
            counts = node in asked.edges if scorer is None else any(task.device == scorer for task in part.own)
            self._scored[node] = frozenset({0} if counts else ())  # of all parties; it stands as device 0's
            arrays = RoundArrays().of(part, needed(part.own))
            messages.append(self._message(node, MessageType.EVALUATE, plan.to_json(), arrays, part, plan.round))
        return messages

    def _counted(self, samples: int) -> int:
        return samples if self.terms.max_samples is None else min(samples, self.terms.max_samples)

    def _token(self, plan: RoundPlan, member: Member, device: int, rows: int, edges: tuple[int, ...]) -> bytes:
        return self.signer.sign(self._claims(plan, member, device, rows, edges))

    def _token_above(self, plan: RoundPlan, hosts: Mapping[int, Member], edge: int, device: int, key: bytes) -> bytes:
        """Returns a token for the server above an edge, which its device's edge brings; it has the key."""
        claims = self._claims(plan, hosts[device], device, hosts[device].samples[device], (edge,))
        return self.signer.sign(replace(claims, fingerprint=key, top=True))

    def _claims(self, plan: RoundPlan, member: Member, device: int, rows: int, edges: tuple[int, ...]) -> Claims:
        steps = plan.local_epochs * math.ceil(rows / plan.batch_size)
        steps *= 2 if plan.tails else 1  # smashed data, and what the tail answers
        return Claims(
            plan.run,
            plan.round,
            device,
            edges,
            steps,
            self._counted(rows),
            self._fence,
            fingerprint(member.key),
        )

    def _message(
        self,
        node: int,
        kind: str,
        plan: str = "",
        arrays: ArrayRecord | None = None,
        part: NodePart | None = None,
        round: int = 0,
    ) -> Message:
        config = ConfigRecord({SETUP: self.setup, PLAN: plan, PART: "" if part is None else part.to_json()})
        content = RecordDict({CONFIG: config, ARRAYS: arrays or ArrayRecord()})
        return Message(content, node, kind, group_id=str(round))


def _restarted(metrics: MetricRecord) -> dict[int, int]:
    names = [name.removeprefix(RESTARTED) for name in metrics if name.startswith(RESTARTED)]
    found = {int(name): metrics[f"{RESTARTED}{name}"] for name in names if is_owner(f"device-{name}")}
    return {device: round for device, round in found.items() if isinstance(round, int) and is_count(round)}


def _remarks(content: RecordDict) -> dict[int, str]:
    try:
        said = json.loads(str(content.config_records[REMARKS][LOST]))
        return {int(device): one_line(str(reason), 300) for device, reason in said.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
