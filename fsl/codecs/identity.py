"""No compression."""

from typing import ClassVar

from torch import Tensor

from fsl.codecs.codec import Codec, Payload, described
from fsl.errors import WireError


class Identity(Codec):
    """Sends tensors as they are; in one process they are not copied. Error: none."""

    name: ClassVar[str] = "identity"
    rowwise: ClassVar[bool] = True

    def encode(self, values: Tensor) -> Payload:
        """The tensor itself."""
        return Payload("identity", (("values", values),))

    def decode(self, payload: Payload) -> Tensor:
        """The tensor itself."""
        # Any dtype will do, so no `unpack`: this runs twice a training step, and is to cost nothing.
        if payload.codec != "identity" or len(payload.arrays) != 1:
            raise WireError(f"codec 'identity' takes one array; it got {described(payload)}")
        return payload.arrays[0][1]
