"""Where smashed data leave a device, and cut gradients come in."""

from torch import Tensor

from fsl.codecs.codec import Codec, Payload


class DeviceCut:
    """A device's end of the cut in one round: its half of both codecs.

    A subclass changes what crosses the cut; devices and their edges do not notice.
    """

    def __init__(self, up: Codec, down: Codec) -> None:
        self.up = up
        self.down = down

    def leave(self, inputs: Tensor, smashed: Tensor) -> Tensor:
        """Returns smashed data (B, ...) as they may leave the front, which made them of `inputs` (B, ...).

        Gradients pass through.
        """
        return smashed

    def encode(self, step: int, smashed: Tensor, targets: Tensor) -> Payload:
        """Encode a step's smashed data (B, ...), which go up with targets (B, ...)."""
        return self.up.encode(smashed)

    def decode(self, step: int, gradient: Payload) -> Tensor:
        """Decode the cut gradient (B, ...) that came down for a step."""
        return self.down.decode(gradient)
