"""Who hosts what: the cloud's list of nodes, the part of each in a round, and what came of it."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fsl.deployment.tally import Tally
from fsl.errors import ConfigError, RunError, TrustError, WireError
from fsl.names import ARRAYS, CONFIG, LOST, MEMBER, METRICS, PART, PLAN, REMARKS, SETUP
from fsl.parts import EdgePart, Part, Ticket
from fsl.placement import Collected
from fsl.plan import CohortTask, DeviceTask, RoundPlan
from fsl.wire.options import Patience
from fsl.wire.relay import new_key
from fsl.wire.tokens import Claims, Signer, fingerprint, registered_key

log = logging.getLogger(__name__)
_POLL = 0.5  # seconds between two questions for replies; Flower's own takes three
Needed = Callable[[Sequence[DeviceTask]], ArrayRecord]


@dataclass(frozen=True)
class Member:
    """A node as it described itself."""

    node: int
    role: str
    samples: Mapping[int, int]  # of each device that it hosts
    edge: int | None
    address: str
    key: bytes  # of its devices, DER
    name: str  # that it was registered by


@dataclass(frozen=True)
class Terms:
    """What the cloud asks of nodes.

    `wait`: seconds to wait, before the first round, for all devices and edges to be there. `query`: for a node to say
    what it hosts. `max_samples`: a device counts as no more than so many. `bind_keys`: a device's key must be the one
    that its SuperNode is registered by. `join`, `straggler`, `answer`: as in `Patience`.
    """

    wait: float = 120.0
    query: float = 120.0
    max_samples: int | None = None
    bind_keys: bool = True
    join: float = Patience.join
    straggler: float = Patience.straggler
    answer: float = Patience.answer

    def __post_init__(self) -> None:
        for name in ("wait", "query"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"deployment.{name}={getattr(self, name)}: it is a number of seconds above 0")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"deployment.max_samples={self.max_samples}: it must be at least 1, or null")
        assert self.patience

    @property
    def patience(self) -> Patience:
        """How long nodes wait in a round, unless their own configuration says otherwise."""
        return Patience(self.join, self.straggler, self.answer)


@dataclass
class _Asked:
    """A round on its way: what each node was asked, and the devices of each edge."""

    plan: RoundPlan
    cohorts: list[CohortTask]
    samples: dict[int, int]
    nodes: dict[int, list[int]] = field(default_factory=dict)  # devices that depend on a node
    sides: dict[str, set[int]] = field(default_factory=lambda: {"edges": set(), "devices": set()})  # nodes
    lost: dict[int, str] = field(default_factory=dict)


class Roster:
    """Places a run's devices and edges on the nodes that host them."""

    def __init__(self, setup: str, terms: Terms):
        self.setup = setup  # what a message says of the run's configuration
        self.terms = terms
        self.signer = Signer()
        self.members: dict[int, Member] = {}
        self.online: list[int] = []
        self._refused: dict[int, str] = {}
        self._fence = 0
        self._asked: _Asked | None = None

    # Who is there.

    def look(self, grid: Grid, devices: int, edges: int, first: bool) -> bool:
        """Ask nodes that are new what they host; False where none has a role, and each hosts whole cohorts.

        Before the first round it waits until every device and edge is hosted, or `terms.wait` seconds are over.
        """
        deadline = time.monotonic() + (self.terms.wait if first else 0)
        self._refused.clear()  # whoever took no part in the round before is asked again
        while True:
            online = self._ask_new(grid)
            self.online = online
            hosted = {device for node in online for device in self.members[node].samples}
            serving = {self.members[node].edge for node in online}
            roles = {self.members[node].role for node in online}
            if roles == {"any"}:
                return False
            missing = [f"device {d}" for d in range(devices) if d not in hosted]
            missing += [f"edge {e}" for e in range(edges) if e not in serving]
            if not missing:
                return True
            if time.monotonic() >= deadline:
                log.warning("not there: %s", ", ".join(missing[:20]))
                if not hosted:
                    raise RunError(f"no node hosts a device of this run; {self._reasons()}")
                return True
            time.sleep(1.0)

    def _ask_new(self, grid: Grid) -> list[int]:
        online = sorted(grid.get_node_ids())
        new = [node for node in online if node not in self.members and node not in self._refused]
        if new:
            known = _known(grid)
            replies = grid.send_and_receive(
                [self._message(node, MessageType.QUERY) for node in new], timeout=self.terms.query
            )
            for reply in replies:
                node = reply.metadata.src_node_id
                try:
                    if reply.has_error():
                        raise WireError(str(reply.error.reason))
                    self.members[node] = self._member(node, reply, *known.get(node, (b"", "")))
                except WireError as error:
                    self._refused[node] = str(error)
                    log.warning("node %d takes no part: %s", node, error)
        return [node for node in online if node in self.members]

    def _member(self, node: int, reply: Message, registered: bytes, name: str) -> Member:
        try:
            said = json.loads(str(reply.content.config_records[CONFIG][MEMBER]))
            samples = {int(device): int(count) for device, count in said["samples"].items()}
            member = Member(
                node, str(said["role"]), samples, said["edge"], str(said["address"]), bytes.fromhex(said["key"]), name
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise WireError(f"it does not say what it hosts ({error})") from None
        for other in self.members.values():
            if other.node not in self.online or other.node == node:
                continue
            if taken := sorted(samples.keys() & other.samples.keys()):
                raise TrustError(f"device {taken[0]} is hosted by {self._name(other.node)} already")
            if member.edge is not None and member.edge == other.edge:
                raise TrustError(f"edge {member.edge} is hosted by {self._name(other.node)} already")
        if samples and self.terms.bind_keys and registered_key(registered) != member.key:
            raise TrustError("its devices' key is not the one that its SuperNode is registered by")
        return member

    def _reasons(self) -> str:
        said = "; ".join(f"node {node}: {reason}" for node, reason in self._refused.items())
        return said or 'start SuperNodes with role="device" in their node configuration'

    # A round.

    def train_messages(self, plan: RoundPlan, cohorts: Sequence[CohortTask], needed: Needed) -> list[Message]:
        """One message for each node with a part in the round."""
        self._fence = max(self._fence + 1, time.time_ns())
        plan = replace(plan, one_by_one=True)
        samples = {d: self._counted(n) for node in self.online for d, n in self.members[node].samples.items()}
        asked = self._asked = _Asked(plan, [], samples)
        sides = asked.sides
        hosts = {d: node for node in self.online for d in self.members[node].samples}
        edges = {m.edge: m for node in self.online if (m := self.members[node]).edge is not None}
        parts: dict[int, Part] = {}
        relay_key = new_key().hex() if plan.fronts == "relayed" else ""
        for cohort in cohorts:
            there = tuple(task for task in cohort.devices if task.device in hosts)
            absent = [task.device for task in cohort.devices if task.device not in hosts]
            asked.lost.update(dict.fromkeys(absent, "no node that hosts it is online"))
            edge = edges.get(cohort.edge)
            if plan.trainer is not None and edge is None:
                gone = dict.fromkeys((t.device for t in there), f"no node that hosts edge {cohort.edge} is online")
                asked.lost.update(gone)
                continue
            if not there:
                continue
            cohort = replace(cohort, devices=there)
            asked.cohorts.append(cohort)
            if edge is not None and plan.trainer is not None:
                part = EdgePart(cohort, self.signer.public_key.hex(), self._fence)
                old = parts.get(edge.node, Part())
                parts[edge.node] = replace(old, edges=(*old.edges, part))
                asked.nodes.setdefault(edge.node, []).extend(t.device for t in there)
                sides["edges"].add(edge.node)
            for task in there:
                node = hosts[task.device]
                old = parts.get(node, Part())
                asked.nodes.setdefault(node, []).append(task.device)
                sides["devices"].add(node)
                if plan.trainer is None or edge is None:
                    parts[node] = replace(old, alone=(*old.alone, task))
                else:
                    ticket = Ticket(task, cohort.edge, edge.address, self._token(plan, task.device, cohort.edge).hex())
                    parts[node] = replace(old, tickets=(*old.tickets, ticket), relay_key=relay_key)
        text = plan.to_json()
        return [
            self._message(node, MessageType.TRAIN, text, needed(_tasks(part)), part, plan.round)
            for node, part in sorted(parts.items())
        ]

    def exchange(self, grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
        """Send a round's messages and wait for the replies.

        A node that was restarted meanwhile never answers, and Flower does not tell. So when one side of the wire has
        answered (all edges, or all devices), the other has `straggler` seconds left.
        """
        sides = self._asked.sides if self._asked is not None else {}
        if any(message.metadata.message_type == MessageType.EVALUATE for message in messages):
            sides, timeout = {}, min(timeout, self.terms.answer)
        waiting = set(grid.push_messages(messages))
        replies: list[Message] = []
        deadline, ended = time.monotonic() + timeout, False
        while waiting and time.monotonic() < deadline:
            new = list(grid.pull_messages(sorted(waiting)))
            replies += new
            waiting -= {reply.metadata.reply_to_message_id for reply in new}
            answered = {reply.metadata.src_node_id for reply in replies}
            if not ended and any(nodes and nodes <= answered for nodes in sides.values()):
                ended, deadline = True, min(deadline, time.monotonic() + self.terms.straggler)
            if waiting:
                time.sleep(_POLL)
        return replies

    def collect(self, replies: Iterable[Message], layouts: Mapping[str, Any]) -> Collected:
        """What the devices that finished at both ends of the wire came to, and why the others did not."""
        asked = self._asked
        assert asked is not None
        tally = Tally(asked.plan, asked.cohorts, asked.samples, layouts, asked.lost)
        answered, failed = set(), 0
        ill: list[int] = []  # asked again before the next round what they host: they may have been started anew
        for reply in sorted(replies, key=lambda m: m.metadata.src_node_id):
            node = reply.metadata.src_node_id
            answered.add(node)
            if reply.has_error():
                failed += 1
                ill.append(node)
                for device in asked.nodes.get(node, []):
                    tally.lose(device, f"{self._name(node)}: {reply.error.reason}")
                continue
            content = reply.content
            for device, reason in _remarks(content).items():
                tally.lose(device, reason)
            tally.add(content.array_records[ARRAYS], content.metric_records[METRICS])
        for node in asked.nodes.keys() - answered:
            for device in asked.nodes[node]:
                tally.lose(device, f"{self._name(node)} did not answer")
            ill.append(node)
        for node in ill:
            self.members.pop(node, None)
        return tally.collected(failed)

    def evaluate_messages(
        self, text: Callable[[Sequence[DeviceTask]], str], tasks: Sequence[DeviceTask], needed: Needed, round: int
    ) -> list[Message]:
        """Devices with fronts of their own are asked to evaluate where they are."""
        messages = []
        for node in self.online:
            here = [task for task in tasks if task.device in self.members[node].samples]
            if here:
                messages.append(self._message(node, MessageType.EVALUATE, text(here), needed(here), None, round))
        return messages

    def _name(self, node: int) -> str:
        """A node as its operator registered it."""
        return f"node {self.members[node].name or node}" if node in self.members else f"node {node}"

    def _counted(self, samples: int) -> int:
        return samples if self.terms.max_samples is None else min(samples, self.terms.max_samples)

    def _token(self, plan: RoundPlan, device: int, edge: int) -> bytes:
        (member,) = (m for node in self.online if device in (m := self.members[node]).samples)
        steps = plan.local_epochs * math.ceil(member.samples[device] / plan.batch_size)
        return self.signer.sign(
            Claims(
                plan.run,
                plan.round,
                device,
                (edge,),
                steps,
                self._counted(member.samples[device]),
                self._fence,
                fingerprint(member.key),
            )
        )

    def _message(
        self,
        node: int,
        kind: str,
        plan: str = "",
        arrays: ArrayRecord | None = None,
        part: Part | None = None,
        round: int = 0,
    ) -> Message:
        config = ConfigRecord({SETUP: self.setup, PLAN: plan, PART: "" if part is None else part.to_json()})
        content = RecordDict({CONFIG: config, ARRAYS: arrays or ArrayRecord()})
        return Message(content, node, kind, group_id=str(round))


def _tasks(part: Part) -> list[DeviceTask]:
    """The devices whose fronts a message must bring; an edge needs none."""
    return [*(ticket.task for ticket in part.tickets), *part.alone]


def _remarks(content: RecordDict) -> dict[int, str]:
    try:
        said = json.loads(str(content.config_records[REMARKS][LOST]))
        return {int(device): str(reason)[:300] for device, reason in said.items()}
    except (KeyError, ValueError, AttributeError):
        return {}


def _known(grid: Grid) -> dict[int, tuple[bytes, str]]:
    """The public keys and the names that Flower knows its nodes by; none where the Grid does not tell."""
    get_nodes = getattr(grid, "get_nodes", None)
    return {} if get_nodes is None else {info.node_id: (info.public_key, info.name) for info in get_nodes()}
