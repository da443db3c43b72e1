"""Counts an edge's sessions, steps and bytes; does nothing without a meter."""

from collections.abc import Callable
from typing import Literal

# Why an edge loses a device: it did not come, was too slow, sent an invalid message, spoke out of turn, went away, or
# the edge's trainer failed.
Reason = Literal["absent", "straggler", "invalid", "out-of-turn", "gone", "edge-failed"]


class EdgeMeter:
    """Counts nothing; a subclass counts. Both the network and the computing thread call it, so it must be quick."""

    def round_began(self, round: int, waiting: Callable[[], int]) -> None:
        """Round number `round` began; `waiting` returns how many events its inbox holds."""

    def round_ended(self, failed: bool) -> None:
        """A round ended."""

    def session_opened(self) -> None:
        """A device has a session."""

    def session_closed(self) -> None:
        """A device that had a session finished its round."""

    def device_lost(self, reason: Reason, joined: bool) -> None:
        """The edge lost a device, which had `joined` (it had a session) or not."""

    def refused(self, code: str) -> None:
        """The door turned somebody away with this gRPC status code."""

    def uploaded(self, size: int) -> None:
        """An upload of `size` bytes came, headers included."""

    def replied(self, size: int) -> None:
        """A reply of `size` bytes goes out, headers included."""

    def served(self, seconds: float) -> None:
        """The edge served an upload `seconds` after it came."""
