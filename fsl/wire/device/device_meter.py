"""Counts what a node's devices do in their rounds; does nothing without a meter."""

from typing import Literal

# Why a device does not finish: its round ended or was given up; its edge said nothing; its edge cannot be reached; its
# edge turned it away; what it trained cannot be used; something failed on its node.
Loss = Literal["deadline", "silent", "unreachable", "refused", "unusable", "failed"]


class DeviceMeter:
    """Counts nothing; a subclass counts. Both the network and the computing thread call it, so it must be quick."""

    def round_began(self, round: int, devices: int) -> None:
        """Round number `round` began with so many devices of this node."""

    def round_ended(self, seconds: float) -> None:
        """The round ended, after so many seconds."""

    def round_failed(self) -> None:
        """This node took no part in a round that it was asked for, or failed in it."""

    def device_finished(self, steps: int = 0) -> None:
        """A device finished its round; `steps` are those that it made without an edge."""

    def device_lost(self, loss: Loss) -> None:
        """A device did not finish its round."""

    def uploaded(self, size: int) -> None:
        """A device made a step and uploads `size` bytes, headers included."""

    def replied(self, size: int, seconds: float) -> None:
        """A cut gradient of `size` bytes came, headers included, `seconds` after its upload."""

    def reconnected(self) -> None:
        """A device came back to its session over another stream."""
