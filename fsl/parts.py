"""A node's part in a round of a real federation: what the cloud tells an edge, and what it tells devices."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fsl.errors import WireError
from fsl.plan import CohortTask, DeviceTask


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
class Part:
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
    def from_json(text: str) -> "Part":
        """The part that `to_json` wrote; WireError for anything else."""
        try:
            raw = json.loads(text)
            return Part(
                tuple(_edge_part(e) for e in raw["edges"]),
                tuple(
                    Ticket(DeviceTask(**t.pop("task")), others=tuple((int(e), str(a)) for e, a in t.pop("others")), **t)
                    for t in raw["tickets"]
                ),
                str(raw["relay_key"]),
                tuple(DeviceTask(**t) for t in raw["alone"]),
                int(raw["replicate_every"]),
                None if raw["deadline"] is None else float(raw["deadline"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WireError(f"this is no part in a round ({error}); cloud and node must run the same fsl") from None


def _cohort(raw: Mapping[str, Any]) -> CohortTask:
    return CohortTask(raw["edge"], tuple(DeviceTask(**d) for d in raw["devices"]), raw["version"], raw["saved"])


def _edge_part(raw: dict[str, Any]) -> EdgePart:
    peers = tuple(EdgePeer(**peer) for peer in raw.pop("peers"))
    visitors = tuple(Visitor(DeviceTask(**visitor["task"]), int(visitor["home"])) for visitor in raw.pop("visitors"))
    return EdgePart(_cohort(raw.pop("cohort")), peers=peers, visitors=visitors, **raw)
