"""Where smashed data leave a device, and cut gradients come in."""

from torch import Tensor

from fsl.codecs.codec import Codec, Payload
from fsl.codecs.cut_codec import CutCodec
from fsl.segments.tensor_trees import Values


class DeviceCut:
    """A device's end of the cut in one round: its half of both codecs.

    A subclass changes what crosses the cut; devices and their edges do not notice.
    """

    def __init__(self, up: CutCodec | Codec, down: CutCodec | Codec) -> None:
        self.up = _for_all(up)
        self.down = _for_all(down)

    def leave(self, inputs: Values, smashed: Values) -> Values:
        """Returns smashed data (B, ...) as they may leave the front, which made them of `inputs` (B, ...).

        Gradients pass through.
        """
        return smashed

    def encode(self, step: int, smashed: Values, targets: Tensor) -> Payload:
        """Encode a step's smashed data (B, ...), which go up with targets (B, ...)."""
        return self.up.encode(smashed)

    def decode(self, step: int, gradient: Payload) -> Values:
        """Decode the cut gradient (B, ...) that came down for a step."""
        return self.down.decode(gradient)


def _for_all(codec: CutCodec | Codec) -> CutCodec:
    return codec if isinstance(codec, CutCodec) else CutCodec(lambda: codec)
