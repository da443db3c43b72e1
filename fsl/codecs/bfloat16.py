"""16-bit floating point (bfloat16)."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, Payload, pack

_LARGEST = torch.finfo(torch.bfloat16).max


class BFloat16(Codec):
    """Halves float32: each value to the nearest bfloat16, which has float32's range. Decodes to what was encoded.

    Error: relative 2^-8 from 1.2e-38 up, absolute 2^-134 below; what lies beyond 3.39e38, infinities too, is saturated
    there, as by Float16. NaN stays NaN.
    """

    name: ClassVar[str] = "bfloat16"
    rowwise: ClassVar[bool] = True

    def encode(self, values: Tensor) -> Payload:
        """The values in bfloat16."""
        largest = min(_LARGEST, torch.finfo(values.dtype).max)  # clamp takes no bound that its input cannot hold
        return pack("bfloat16", values.dtype, ("values", values.clamp(-largest, largest).to(torch.bfloat16)))

    def decode(self, payload: Payload) -> Tensor:
        """The values in the dtype that was encoded."""
        (values,) = payload.unpack("bfloat16", values=torch.bfloat16)
        return values.to(payload.dtype)
