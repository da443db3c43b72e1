"""What devices and edges say to each other in a training step.

`Packet`s cross the link, encoded; an edge trainer sees what was in them, as `Upload`s, and answers with `Reply`s.
"""

from dataclasses import dataclass

from torch import Tensor

from fsl.codecs import Payload
from fsl.trainers.uploads import Reply, Upload

__all__ = ["NOTHING", "Reply", "ReplyPacket", "TailAnswer", "TailCall", "Upload", "UploadPacket"]
NOTHING = Payload("", ())  # in place of what somebody does not send in a step


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPacket:
    """One step's smashed data on the wire, with the labels where the edge computes the loss."""

    device: int
    step: int
    smashed: Payload
    targets: Tensor | None  # None: they stay on the device
    factors: Tensor | None = None

    @property
    def absent(self) -> bool:
        """Whether the step goes on without this device (vertical split learning)."""
        return self.smashed == NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPacket:
    """One step's cut gradient on the wire.

    `told` (2,) float64: mean loss and its weight, from a server above an edge.
    """

    device: int
    step: int
    gradient: Payload
    norms: Tensor | None = None
    told: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TailCall:
    """The back's outputs of one step on the wire, on their way to a device's tail (U-shaped split)."""

    device: int
    step: int
    outputs: Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class TailAnswer:
    """What a device's tail found: the gradient at the back's outputs, and `told` (2,): mean loss, and its weight."""

    device: int
    step: int
    gradient: Payload
    told: Tensor
