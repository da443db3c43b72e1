"""Names the server, the token and the codecs with which a device, or an edge for it, opens a session."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Invitation:
    """All that it takes to open a device's session at an edge or, with `top`, at the server above that edge."""

    device: int
    edge: int
    address: str
    token: bytes
    up: str
    down: str
    served: int = 0  # uploads that other edges served before, where it comes from one
    left: int | None = None  # the edge that it left of its own accord
    top: bool = False

    @property
    def who(self) -> str:
        """Returns what messages call the server."""
        return f"the server above edge {self.edge}" if self.top else f"edge {self.edge}"
