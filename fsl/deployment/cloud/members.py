"""Finds a run's nodes and what each hosts, as it says and as its key proves."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fsl.deployment.cloud.closing import check_closing
from fsl.deployment.cloud.enrolled import Enrolled, fingerprint_of, names_of
from fsl.deployment.node.node_settings import Role
from fsl.errors import ConfigError, RunError, TrustError, WireError, one_of
from fsl.importing.building import build_kind
from fsl.messages.identifiers import is_address, is_count, is_hex, is_hex_key, is_owner
from fsl.messages.record_names import CONFIG, LINE, MEMBER, SETUP
from fsl.messages.versions import check_versions
from fsl.quoting import one_line
from fsl.wire.line.cloud_lines import CloudLines
from fsl.wire.options import Patience
from fsl.wire.tokens import registered_key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A node as it described itself."""

    node: int
    role: str
    samples: Mapping[int, int]  # n_k of each device that it hosts
    edge: int | None
    address: str
    key: bytes  # the devices' public key, DER
    label: str  # the name by which its operator registered it
    edge_key: str = ""  # hex; the public key of its edge's signatures to other edges
    registered: bytes = b""  # its SuperNode's public key, DER; empty where keys do not bind
    line: bool = False  # it opens the line that it was offered

    @property
    def names(self) -> list[str]:
        """Names of the devices and the edge that it hosts, as a table of members writes them."""
        return names_of(self.samples, self.edge)


@dataclass(frozen=True)
class Terms:
    """The terms on which nodes take part in a run (configuration group `deployment`).

    `wait`: seconds that the cloud waits, before the first round, for all devices and edges. `query`: seconds for a node
    to say what it hosts. `max_samples`: a device's n_k counts up to so many. `bind_keys`: a device must use the key by
    which its SuperNode is registered, and each device and edge has one key: that of the table `members` (see
    `enrolled`), or the first one that answered in this run. `roaming`: every device may move to every edge, where its
    link leads there or its edge does not answer; else only as the run's mobility model says. `replicate_every`: every
    so many steps an edge copies a session to another edge that the device may go to; 0: never. `join`, `straggler`,
    `answer`: as in `Patience`. `deadline`: seconds from a round's start, after which the cloud loses devices that have
    not finished; where devices wait for each other, first those that others wait for, and the rest after as long again.
    `quorum`: how many devices (a float: which share of the round's) must finish for a round to count. `max_norm`:
    the longest update that counts, in multiples of the round's median norm. None: no such limit.
    `line`: "auto" has each node open a line to the cloud, which listens at `line_listen` and is reached at
    `line_address` (None: at that port of the host where the node reaches the SuperLink); nodes without one, and all
    where it is "flower", are served by Flower's messages.
    `metrics`: where the cloud serves its metrics while the run is at work, as host:port; None: nowhere.
    """

    wait: float = 120.0
    query: float = 120.0
    max_samples: int | None = None
    bind_keys: bool = True
    members: str | None = None
    roaming: bool = False
    replicate_every: int = 0
    join: float = Patience.join
    straggler: float = Patience.straggler
    answer: float = Patience.answer
    deadline: float | None = None
    quorum: int | float | None = None
    max_norm: float | None = None
    line: Literal["auto", "flower"] = "auto"
    line_listen: str = "0.0.0.0:9097"
    line_address: str | None = None
    metrics: str | None = None

    def __post_init__(self) -> None:
        for name in ("wait", "query", "join", "straggler", "answer"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"deployment.{name}={getattr(self, name)}: it is a number of seconds above 0")
        if self.replicate_every < 0:
            raise ConfigError(f"deployment.replicate_every={self.replicate_every}: a number of steps, or 0 for never")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"deployment.max_samples={self.max_samples}: it must be at least 1, or null")
        check_closing(**self.closing)
        one_of("deployment.line", self.line, ("auto", "flower"))
        for name in ("line_listen", "line_address", "metrics"):
            if (value := getattr(self, name)) is not None and not is_address(value):
                raise ConfigError(f"deployment.{name}={value!r}: give host:port")
        if self.members is not None and not self.bind_keys:
            raise ConfigError(
                f"deployment.members={self.members}: with bind_keys=false nobody's key counts; leave out one of them"
            )

    @property
    def closing(self) -> dict[str, Any]:
        """The rules that close a round, by name; `check_closing` checks their values."""
        return {"deadline": self.deadline, "quorum": self.quorum, "max_norm": self.max_norm}

    @property
    def table(self) -> Path | None:
        """Path of the operator's table of members; None without one."""
        return None if self.members is None else Path(self.members).expanduser()

    @property
    def patience(self) -> Patience:
        """Seconds that nodes wait in a round, unless their own configuration says otherwise."""
        return Patience(self.join, self.straggler, self.answer)


def build_terms(config: Mapping[str, Any]) -> Terms:
    """Read the terms from a configuration's group `deployment`; ConfigError for an invalid key or value."""
    return build_kind("deployment", {"_target_": "fsl.deployment.cloud.members.Terms", **config}, Terms)


class Members:
    """Asks a run's nodes once what they host, and again after they failed."""

    def __init__(
        self, setup: str, terms: Terms, first_use: Path | None = None, lines: CloudLines | None = None
    ) -> None:
        self.setup = setup
        self.terms = terms
        self.lines = lines
        self.enrolled = Enrolled(terms.table, first_use)
        self.enrolled.read()
        self.online: list[Member] = []  # at the last look
        self._known: dict[int, Member] = {}
        self._refused: dict[int, str] = {}
        self._silent: set[int] = set()  # online, but they did not answer the last query
        self._missed = ""  # what the log said last of who is not there

    def look(self, grid: Grid, devices: int, edges: int, first: bool) -> bool:
        """Ask new nodes what they host; returns False where no node has a role, so that each hosts whole cohorts.

        Before the first round it waits until nodes host every device and edge, or `terms.wait` seconds are over.
        """
        deadline = time.monotonic() + (self.terms.wait if first else 0)
        self._refused.clear()  # so that it asks nodes again that it left out of the last round
        while True:
            self._ask_new(grid)
            if {member.role for member in self.online} == {"any"}:
                return False
            hosted = {device for member in self.online for device in member.samples}
            serving = {member.edge for member in self.online}
            missing = [f"device {d}" for d in range(devices) if d not in hosted]
            missing += [f"edge {e}" for e in range(edges) if e not in serving]
            if not missing:
                self._missed = ""
                return True
            if time.monotonic() >= deadline:
                self._miss(f"{', '.join(missing[:20])}{self._busy()}")
                if not hosted:
                    raise RunError(f"no node hosts a device of this run; {self._reasons()}")
                return True
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))

    def _miss(self, missing: str) -> None:
        """Log who is not there, once until that changes: rounds may follow each other twice a second."""
        if missing != self._missed:
            log.warning("not there: %s", missing)
        self._missed = missing

    def forget(self, node: int) -> None:
        """Ask a node again before the next round, since it failed and may restart with another configuration."""
        self._known.pop(node, None)

    def label(self, node: int) -> str:
        """Returns the name by which its operator registered a node."""
        named = [member.label for member in self.online if member.node == node and member.label]
        return f"node {named[0] if named else node}"

    def _ask_new(self, grid: Grid) -> None:
        ids = sorted(grid.get_node_ids())
        new = [node for node in ids if node not in self._known and node not in self._refused]
        if new or self.terms.bind_keys:
            self.enrolled.read()
        for node, member in list(self._known.items()):  # an operator may have given a number to another key
            if self.terms.bind_keys and not self._rightful(member):
                del self._known[node]
        if new:
            registered = _registered(grid)
            found: list[Member] = []
            queries = [Message(self._question(node), node, MessageType.QUERY, group_id="0") for node in new]
            self._silent = set(new)
            for reply in grid.send_and_receive(queries, timeout=self.terms.query):
                node = reply.metadata.src_node_id
                self._silent.discard(node)
                try:
                    if reply.has_error():
                        raise WireError(one_line(str(reply.error.reason), 1000))
                    found.append(self._member(node, reply, ids, *registered.get(node, (b"", ""))))
                except WireError as error:
                    self._refuse(node, error)
            self._admit(sorted(found, key=lambda member: member.node), ids)
        self.online = [self._known[node] for node in ids if node in self._known]

    def _question(self, node: int) -> RecordDict:
        """Ask what a node hosts, and offer it a line where it has none."""
        offer = {}
        if self.lines is not None and node not in self.lines.open:
            offer = {LINE: self.lines.offer(node).to_json()}
        return RecordDict({CONFIG: ConfigRecord({SETUP: self.setup, **offer})})

    def _member(self, node: int, reply: Message, online: list[int], registered: bytes, label: str) -> Member:
        try:
            said = json.loads(str(reply.content.config_records[CONFIG][MEMBER]))
            check_versions(said.get("protocol"), said.get("version"), "this node", "the cloud")
            samples = {_device(device): _count(count) for device, count in said["samples"].items()}
            if wrong := _wrong(said):
                raise ValueError(f"{wrong}={said[wrong]!r}")
            key = bytes.fromhex(said["key"])
            role, edge_key, label = said["role"], said["edge_key"], one_line(label, 100)
            line = said["line"]
            member = Member(node, role, samples, said["edge"], said["address"], key, label, edge_key, line=line)
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise WireError(f"it does not say what it hosts ({one_line(str(error), 200)})") from None
        if few := [device for device, count in samples.items() if count < 1]:
            raise WireError(f"it says that device {few[0]} holds {samples[few[0]]} samples; one is the least")
        if member.names and self.terms.bind_keys:
            if not registered:
                raise TrustError("the SuperLink knows no key of it (--enable-supernode-auth, flwr supernode register)")
            own = registered_key(registered)
            if samples and own != member.key:
                raise TrustError("its devices' key is not the one that its SuperNode is registered by")
            member = replace(member, registered=own)
            self.enrolled.refuse(member.names, own)
        return member

    def _admit(self, found: list[Member], online: list[int]) -> None:
        """Admit the nodes that answered; where several answer for a number that is nobody's yet, none gets it."""
        claimants: dict[str, list[Member]] = {}
        for member in found:
            for name in member.names:
                claimants.setdefault(name, []).append(member)
        for member in found:
            others = [other for other in self._known.values() if other.node in online and other.node != member.node]
            if self.terms.bind_keys:
                others += [other for name in member.names for other in claimants[name] if other is not member]
            try:
                for other in others:
                    _refuse_both(member, other)
            except WireError as error:
                self._refuse(member.node, error)
                continue
            self._known[member.node] = member
            if self.lines is not None and member.line:
                self.lines.expect([member.node])
            if self.terms.bind_keys and (new := self.enrolled.note(member.names, member.registered)):
                where = self.enrolled.first_use or "this run's memory"
                log.info(
                    "%s: key %s, noted in %s",
                    *(", ".join(new[:5]) + (", ..." if len(new) > 5 else ""), fingerprint_of(member.registered), where),
                )

    def _rightful(self, member: Member) -> bool:
        try:
            if member.names:
                self.enrolled.refuse(member.names, member.registered)
        except WireError as error:
            self._refuse(member.node, error)
            return False
        return True

    def _refuse(self, node: int, error: WireError) -> None:
        self._refused[node] = str(error)
        log.warning("node %d takes no part: %s", node, error)

    def _reasons(self) -> str:
        said = "; ".join(f"node {node}: {reason}" for node, reason in self._refused.items()) + self._busy()
        return said.removeprefix("; ") or 'start SuperNodes with role="device" in their node configuration'

    def _busy(self) -> str:
        """Returns a sentence on nodes that are online and do not answer; empty where there are none."""
        if not self._silent:
            return ""
        nodes = ", ".join(map(str, sorted(self._silent)[:20]))
        return (
            f"; {len(self._silent)} nodes are online and did not answer within {self.terms.query:g} s ({nodes}): they "
            "are busy, most likely with another run. A node goes on with a round of a run that was stopped until the "
            "round ends there (`flwr list` shows runs); wait for it, or restart these SuperNodes"
        )


def _refuse_both(member: Member, other: Member) -> None:
    """Raise TrustError where two nodes answer for one number."""
    for name in member.names:
        if name in other.names:
            what, _, number = name.partition("-")
            keys = [f" (key {fingerprint_of(one.registered)})" if one.registered else "" for one in (other, member)]
            raise TrustError(
                f"{what} {number} is hosted by node {other.label or other.node} already{keys[0]}; this is node "
                f"{member.label or member.node}{keys[1]}; a table of members says whose it is (deployment.members)"
            )


def _device(text: Any) -> int:
    if not is_owner(f"device-{text}") or not is_count(device := int(text)):
        raise ValueError(f"device {text!r}")
    return device


def _count(value: Any) -> int:
    if not is_count(value):
        raise ValueError(f"samples={value!r}")
    return int(value)


def _wrong(said: Mapping[str, Any]) -> str | None:
    """Returns the invalid field of a node's answer; None where all are valid."""
    fine = {
        "role": said["role"] in get_args(Role),
        "edge": said["edge"] is None or is_count(said["edge"]),
        "address": said["address"] == "" if said["edge"] is None else is_address(said["address"]),
        "key": is_hex(said["key"]),
        "line": isinstance(said["line"], bool),
        "edge_key": said["edge_key"] == "" if said["edge"] is None else is_hex_key(said["edge_key"]),
    }
    return next((name for name, holds in fine.items() if not holds), None)


def _registered(grid: Grid) -> dict[int, tuple[bytes, str]]:
    """Returns Flower's public keys and names of its nodes; empty where the Grid does not tell."""
    get_nodes = getattr(grid, "get_nodes", None)
    return {} if get_nodes is None else {info.node_id: (info.public_key, info.name) for info in get_nodes()}
