"""Names the edge, the token and the codecs with which a device opens a session."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Invitation:
    """All that a device needs to open a session at an edge."""

    device: int
    edge: int
    address: str
    token: bytes
    up: str
    down: str
    served: int = 0  # uploads that other edges served before, where it comes from one
    left: int | None = None  # the edge that it left of its own accord
