"""Which nodes there are, and what each hosts, as it says and as its key proves."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fsl.config import build_kind
from fsl.deployment.settings import Role
from fsl.errors import ConfigError, RunError, TrustError, WireError
from fsl.identifiers import is_address, is_count, is_hex, is_owner
from fsl.names import CONFIG, MEMBER, SETUP
from fsl.quoting import one_line
from fsl.versions import check_versions
from fsl.wire.options import Patience
from fsl.wire.tokens import registered_key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A node as it described itself."""

    node: int
    role: str
    samples: Mapping[int, int]  # of each device that it hosts
    edge: int | None
    address: str
    key: bytes  # of its devices, DER
    label: str  # the name that it was registered by
    edge_key: str = ""  # hex; what its edge signs by, for other edges


@dataclass(frozen=True)
class Terms:
    """What the cloud asks of nodes.

    `wait`: seconds to wait, before the first round, for all devices and edges to be there. `query`: for a node to say
    what it hosts. `max_samples`: a device counts as no more than so many. `bind_keys`: a device's key must be the one
    that its SuperNode is registered by. `roaming`: every device may move to every edge, when its link says so or its
    edge cannot be reached; else only where the run's mobility model says. `replicate_every`: so
    often, in steps, an edge copies a session to another that its device may go to; 0: never. `join`, `straggler`,
    `answer`: as in `Patience`.
    """

    wait: float = 120.0
    query: float = 120.0
    max_samples: int | None = None
    bind_keys: bool = True
    roaming: bool = False
    replicate_every: int = 0
    join: float = Patience.join
    straggler: float = Patience.straggler
    answer: float = Patience.answer

    def __post_init__(self) -> None:
        for name in ("wait", "query"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"deployment.{name}={getattr(self, name)}: it is a number of seconds above 0")
        if self.replicate_every < 0:
            raise ConfigError(f"deployment.replicate_every={self.replicate_every}: a number of steps, or 0 for never")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"deployment.max_samples={self.max_samples}: it must be at least 1, or null")
        assert self.patience

    @property
    def patience(self) -> Patience:
        """How long nodes wait in a round, unless their own configuration says otherwise."""
        return Patience(self.join, self.straggler, self.answer)


def build_terms(config: Mapping[str, Any]) -> Terms:
    """The terms that a configuration's group `deployment` says; ConfigError for a key or value that cannot be."""
    return build_kind("deployment", {"_target_": "fsl.deployment.members.Terms", **config}, Terms)


class Members:
    """The nodes of a run, asked once what they host, and again when they failed."""

    def __init__(self, setup: str, terms: Terms):
        self.setup = setup
        self.terms = terms
        self.online: list[Member] = []  # when one last looked
        self._known: dict[int, Member] = {}
        self._refused: dict[int, str] = {}

    def look(self, grid: Grid, devices: int, edges: int, first: bool) -> bool:
        """Ask nodes that are new what they host; False where none has a role, and each hosts whole cohorts.

        Before the first round it waits until every device and edge is hosted, or `terms.wait` seconds are over.
        """
        deadline = time.monotonic() + (self.terms.wait if first else 0)
        self._refused.clear()  # whoever took no part in the round before is asked again
        while True:
            self._ask_new(grid)
            if {member.role for member in self.online} == {"any"}:
                return False
            hosted = {device for member in self.online for device in member.samples}
            serving = {member.edge for member in self.online}
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

    def forget(self, node: int) -> None:
        """Ask a node again before the next round: it failed, and may be started anew with another configuration."""
        self._known.pop(node, None)

    def label(self, node: int) -> str:
        """A node as its operator registered it."""
        named = [member.label for member in self.online if member.node == node and member.label]
        return f"node {named[0] if named else node}"

    def _ask_new(self, grid: Grid) -> None:
        ids = sorted(grid.get_node_ids())
        new = [node for node in ids if node not in self._known and node not in self._refused]
        if new:
            registered = _registered(grid)
            content = RecordDict({CONFIG: ConfigRecord({SETUP: self.setup})})
            queries = [Message(content, node, MessageType.QUERY, group_id="0") for node in new]
            for reply in grid.send_and_receive(queries, timeout=self.terms.query):
                node = reply.metadata.src_node_id
                try:
                    if reply.has_error():
                        raise WireError(one_line(str(reply.error.reason), 1000))
                    self._known[node] = self._member(node, reply, ids, *registered.get(node, (b"", "")))
                except WireError as error:
                    self._refused[node] = str(error)
                    log.warning("node %d takes no part: %s", node, error)
        self.online = [self._known[node] for node in ids if node in self._known]

    def _member(self, node: int, reply: Message, online: list[int], registered: bytes, label: str) -> Member:
        try:
            said = json.loads(str(reply.content.config_records[CONFIG][MEMBER]))
            check_versions(said.get("protocol"), said.get("version"), "this node", "the cloud")
            samples = {_device(device): _count(count) for device, count in said["samples"].items()}
            if wrong := _wrong(said):
                raise ValueError(f"{wrong}={said[wrong]!r}")
            key = bytes.fromhex(said["key"])
            role, edge_key, label = said["role"], said["edge_key"], one_line(label, 100)
            member = Member(node, role, samples, said["edge"], said["address"], key, label, edge_key)
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise WireError(f"it does not say what it hosts ({one_line(str(error), 200)})") from None
        for other in self._known.values():
            if other.node not in online or other.node == node:
                continue
            if taken := sorted(samples.keys() & other.samples.keys()):
                raise TrustError(f"device {taken[0]} is hosted by node {other.label or other.node} already")
            if member.edge is not None and member.edge == other.edge:
                raise TrustError(f"edge {member.edge} is hosted by node {other.label or other.node} already")
        if samples and self.terms.bind_keys and registered_key(registered) != member.key:
            raise TrustError("its devices' key is not the one that its SuperNode is registered by")
        return member

    def _reasons(self) -> str:
        said = "; ".join(f"node {node}: {reason}" for node, reason in self._refused.items())
        return said or 'start SuperNodes with role="device" in their node configuration'


def _device(text: Any) -> int:
    if not is_owner(f"device-{text}") or not is_count(device := int(text)):
        raise ValueError(f"device {text!r}")
    return device


def _count(value: Any) -> int:
    if not is_count(value):
        raise ValueError(f"samples={value!r}")
    return int(value)


def _wrong(said: Mapping[str, Any]) -> str | None:
    """The field of a node's answer that is not what it should be; None where all are."""
    fine = {
        "role": said["role"] in get_args(Role),
        "edge": said["edge"] is None or is_count(said["edge"]),
        "address": said["address"] == "" if said["edge"] is None else is_address(said["address"]),
        "key": is_hex(said["key"]),
        "edge_key": is_hex(said["edge_key"], *([0] if said["edge"] is None else [32])),
    }
    return next((name for name, holds in fine.items() if not holds), None)


def _registered(grid: Grid) -> dict[int, tuple[bytes, str]]:
    """The public keys and the names that Flower knows its nodes by; none where the Grid does not tell."""
    get_nodes = getattr(grid, "get_nodes", None)
    return {} if get_nodes is None else {info.node_id: (info.public_key, info.name) for info in get_nodes()}
