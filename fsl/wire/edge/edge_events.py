"""Events by which other edges' calls reach the round's computing thread."""

from collections.abc import Callable
from dataclasses import dataclass

from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.session import WireSession
from fsl.wire.tokens import Claims


@dataclass(frozen=True)
class Handed:
    """A session came from another edge."""

    device: int
    claims: Claims
    token: bytes
    data: bytes
    moved_bytes: int
    done: Callable[["WireSession | Refusal"], None]


@dataclass(frozen=True)
class Asked:
    """Another edge asks for the session of a device that has come there."""

    device: int
    edge: int
    done: Callable[["tuple[bytes, int] | Refusal"], None]  # gets the snapshot, and the bytes of all moves


@dataclass(frozen=True)
class Delivered:
    """Reports whether a session reached the other edge, or why not."""

    device: int
    edge: int
    failure: str | None


@dataclass(frozen=True)
class Placed:
    """Another edge says which devices are there, and which have ended their round there."""

    edge: int
    here: frozenset[int]
    settled: frozenset[int]
    over: bool


@dataclass(frozen=True)
class Silent:
    """Another edge no longer answers."""

    edge: int


@dataclass(frozen=True)
class Sent:
    """Reports whether a device's optimizer state reached its home edge, or why not."""

    device: int
    failure: str | None
