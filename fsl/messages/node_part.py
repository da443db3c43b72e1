"""A node's part in a round of a real federation: what the cloud tells an edge, and what it tells devices."""

import sys
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from fsl.errors import WireError
from fsl.messages.identifiers import Address, Count, Hex, HexKey, OptionalHexKey
from fsl.messages.round_plan import CohortTask, DeviceTask
from fsl.messages.strict_json import from_json, to_json
from fsl.split.pieces import number_of_middle
from fsl.split.placing import TOP

Seconds = Annotated[float, Meta(gt=0, le=sys.float_info.max)]


@dataclass(frozen=True, kw_only=True)
class EdgePeer:
    """Another edge of the round."""

    edge: Count
    address: Address
    key: HexKey  # Ed25519


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """A device whose round begins at another edge."""

    task: DeviceTask
    home: Count


@dataclass(frozen=True, kw_only=True)
class WayUp:
    """How an edge reaches the server above it: where it is, and for each device the token that lets the edge in."""

    address: Address
    tokens: tuple[tuple[Count, Hex], ...]


@dataclass(frozen=True, kw_only=True)
class TopPart:
    """The part of the server above one edge: the edge's cohort, and how it knows the tokens that the edge brings."""

    cohort: CohortTask
    cloud_key: HexKey  # what tokens are checked with
    fence: Annotated[int, Meta(ge=0)]  # of this round's tokens, below 2**64

    def __post_init__(self) -> None:
        if self.fence >= 1 << 64:
            raise ValueError("fence is not below 2**64")


@dataclass(frozen=True, kw_only=True)
class EdgePart(TopPart):
    """One edge's part: its cohort, and how it knows the devices' tokens."""

    peers: tuple[EdgePeer, ...] = ()  # where devices may move to, or come from
    visitors: tuple[Visitor, ...] = ()  # devices of other edges that may come
    up: WayUp | None = None  # to the server above it, in a split with two hops


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One device's part: where it trains, and the token that lets it."""

    task: DeviceTask
    edge: Count
    address: Address
    token: Hex
    others: tuple[tuple[Count, Address], ...] = ()  # edges that it may move to, with their addresses


@dataclass(frozen=True, kw_only=True)
class NodePart:
    """All that a node has to do in a round."""

    edges: tuple[EdgePart, ...] = ()
    tops: tuple[TopPart, ...] = ()  # of servers above edges
    tickets: tuple[Ticket, ...] = ()
    relay_key: OptionalHexKey = ""  # seals fronts that pass through an edge, which never gets it
    alone: tuple[DeviceTask, ...] = ()  # devices that train the whole model, without an edge
    replicate_every: Count = 0  # steps, for sessions that may move
    deadline: Seconds | None = None  # seconds from here on, for the whole round

    @property
    def own(self) -> tuple[DeviceTask, ...]:
        """What the node's own devices do, at an edge or alone."""
        return *self.alone, *(ticket.task for ticket in self.tickets)

    def holds(self, segment: str) -> bool:
        """Whether the node works on a segment: edges on the back, servers above them on the top, devices on the rest.

        A device alone works on all.

        A segment between two cuts runs on devices that are cut behind it, and at the edges of the others.
        """
        if self.alone:
            return True
        if segment == TOP:
            return bool(self.tops)
        number = number_of_middle(segment)
        if number is None:
            return bool(self.edges if segment == "back" else self.tickets)
        served = (task for edge in self.edges for task in edge.cohort.devices)
        return any(t.task.cut >= number for t in self.tickets) or any(task.cut < number for task in served)

    def to_json(self) -> str:
        """The part as JSON."""
        return to_json(self)

    @staticmethod
    def from_json(text: str) -> "NodePart":
        """The part that `to_json` wrote; WireError for anything else."""
        try:
            return from_json(text, NodePart)
        except ValueError as error:
            raise WireError(f"this is no part in a round ({error}); cloud and node must run the same fsl") from None
