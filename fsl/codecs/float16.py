"""Encodes to 16-bit floating point (float16)."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, Payload, pack

_LARGEST = torch.finfo(torch.float16).max


class Float16(Codec):
    """Halves float32: rounds each value to the nearest float16. Decodes to the dtype that was encoded.

    Error: relative 2^-11 from 6.1e-5 up, absolute 2^-25 below; it saturates values beyond 65504, and infinities, there,
    since one infinity would end a training run. NaN stays NaN.
    """

    name: ClassVar[str] = "float16"
    rowwise: ClassVar[bool] = True

    def encode(self, values: Tensor) -> Payload:
        """Returns the values in float16."""
        return pack("float16", values.dtype, ("values", values.clamp(-_LARGEST, _LARGEST).to(torch.float16)))

    def decode(self, payload: Payload) -> Tensor:
        """Returns the values in the dtype that was encoded."""
        (values,) = payload.unpack("float16", values=torch.float16)
        return values.to(payload.dtype)
