"""What an edge tells whoever counts: nothing, unless a meter is given."""

from collections.abc import Callable
from typing import Literal

# Why a device is lost: it did not come, was too slow, sent what cannot be, spoke out of turn, went away, or its edge's
# trainer failed.
Reason = Literal["absent", "straggler", "invalid", "out-of-turn", "gone", "edge-failed"]


class EdgeMeter:
    """Counts nothing. Its methods are called on the network thread and on the one that computes, and must be quick."""

    def round_began(self, waiting: Callable[[], int]) -> None:
        """A round began; `waiting` tells how many events nobody has looked at."""

    def round_ended(self, failed: bool) -> None:
        """A round ended."""

    def session_opened(self) -> None:
        """A device has a session."""

    def session_closed(self) -> None:
        """A device that had a session finished its round."""

    def device_lost(self, reason: Reason, joined: bool) -> None:
        """A round goes on without a device, which had `joined` (it has a session) or not."""

    def refused(self, code: str) -> None:
        """Somebody was turned away at the door, with this gRPC status code."""

    def uploaded(self, size: int) -> None:
        """An upload came, of so many bytes, headers included."""

    def replied(self, size: int) -> None:
        """A reply goes out, of so many bytes, headers included."""

    def served(self, seconds: float) -> None:
        """An upload was served so many seconds after it came."""
