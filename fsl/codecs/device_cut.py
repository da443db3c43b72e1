"""Where smashed data leave a device, and cut gradients come in."""

from torch import Tensor

from fsl.codecs.codec import Payload
from fsl.codecs.cut_ends import SendingEnd
from fsl.segments.tensor_trees import Values


class DeviceCut(SendingEnd):
    """A device's end of the cut in one round: its half of both codecs.

    A subclass changes what crosses the cut; devices and their edges do not notice.
    """

    def leave(self, inputs: Values, smashed: Values) -> Values:
        """Returns smashed data (B, ...) as they may leave the front, which made them of `inputs` (B, ...).

        Gradients pass through.
        """
        return smashed

    def encode(self, step: int, smashed: Values, targets: Tensor, answered: bool = True) -> Payload:
        """Encode a step's smashed data (B, ...), which go up with targets (B, ...).

        `answered`: whether the device awaits a cut gradient.
        """
        return self.send(step, smashed, answered)

    def decode(self, step: int, gradient: Payload) -> Values:
        """Returns the cut gradient (B, ...) of a step from what came down for it."""
        return self.hear(step, gradient)
