"""A node's part in a round of a real federation: what the cloud tells an edge, and what it tells devices."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from fsl.errors import WireError
from fsl.messages.identifiers import is_address, is_count, is_hex
from fsl.messages.round_plan import CohortTask, DeviceTask, read_cohort, read_device
from fsl.quoting import one_line


@dataclass(frozen=True)
class EdgePeer:
    """Another edge of the round."""

    edge: int
    address: str
    key: str  # hex, Ed25519


@dataclass(frozen=True)
class Visitor:
    """A device whose round begins at another edge."""

    task: DeviceTask
    home: int


@dataclass(frozen=True)
class EdgePart:
    """One edge's part: its cohort, and how it knows the devices' tokens."""

    cohort: CohortTask
    cloud_key: str  # hex; what tokens are checked with
    fence: int  # of this round's tokens
    peers: tuple[EdgePeer, ...] = ()  # where devices may move to, or come from
    visitors: tuple[Visitor, ...] = ()  # devices of other edges that may come


@dataclass(frozen=True)
class Ticket:
    """One device's part: where it trains, and the token that lets it."""

    task: DeviceTask
    edge: int
    address: str
    token: str  # hex
    others: tuple[tuple[int, str], ...] = ()  # edges that it may move to, with their addresses


@dataclass(frozen=True)
class NodePart:
    """All that a node has to do in a round."""

    edges: tuple[EdgePart, ...] = ()
    tickets: tuple[Ticket, ...] = ()
    relay_key: str = ""  # hex; seals fronts that pass through an edge, which never gets it
    alone: tuple[DeviceTask, ...] = field(default=())  # devices that train the whole model, without an edge
    replicate_every: int = 0  # steps, for sessions that may move
    deadline: float | None = None  # seconds from here on, for the whole round

    @property
    def own(self) -> tuple[DeviceTask, ...]:
        """What the node's own devices do, at an edge or alone."""
        return *self.alone, *(ticket.task for ticket in self.tickets)

    def to_json(self) -> str:
        """The part as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "NodePart":
        """The part that `to_json` wrote; WireError for anything else."""
        try:
            raw = json.loads(text)
            part = NodePart(
                tuple(_edge_part(e) for e in raw["edges"]),
                tuple(_ticket(t) for t in raw["tickets"]),
                raw["relay_key"],
                tuple(read_device(t) for t in raw["alone"]),
                raw["replicate_every"],
                raw["deadline"],
            )
            _check(is_hex(part.relay_key, 0, 32), "relay_key")
            _check(is_count(part.replicate_every), "replicate_every")
            _check(part.deadline is None or _is_seconds(part.deadline), "deadline")
            return part
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = one_line(str(error), 200)
            raise WireError(f"this is no part in a round ({reason}); cloud and node must run the same fsl") from None


def _edge_part(raw: dict[str, Any]) -> EdgePart:
    peers = tuple(EdgePeer(**peer) for peer in raw.pop("peers"))
    for peer in peers:
        _check(is_count(peer.edge) and is_address(peer.address) and is_hex(peer.key, 32), "a peer")
    visitors = tuple(Visitor(read_device(visitor["task"]), visitor["home"]) for visitor in raw.pop("visitors"))
    _check(all(is_count(visitor.home) for visitor in visitors), "a visitor's home")
    part = EdgePart(read_cohort(raw.pop("cohort")), peers=peers, visitors=visitors, **raw)
    _check(is_hex(part.cloud_key, 32), "cloud_key")
    _check(type(part.fence) is int and 0 <= part.fence < 1 << 64, "fence")
    return part


def _ticket(raw: dict[str, Any]) -> Ticket:
    others = tuple((edge, address) for edge, address in raw.pop("others"))
    ticket = Ticket(read_device(raw.pop("task")), others=others, **raw)
    places = [(ticket.edge, ticket.address), *others]
    _check(all(is_count(edge) and is_address(address) for edge, address in places), "a ticket's edge or address")
    _check(is_hex(ticket.token), "a token")
    return ticket


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"{what} is not what it should be")
