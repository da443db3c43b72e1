"""Encodes to 16-bit floating point (bfloat16)."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, Payload, pack

_LARGEST = torch.finfo(torch.bfloat16).max


class BFloat16(Codec):
    """Halves float32: rounds to the nearest bfloat16, which has float32's range. Decodes to the dtype of its input.

    Error: relative 2^-8 from 1.2e-38 up, absolute 2^-134 below; it saturates values beyond 3.39e38, and infinities,
    there, like Float16. NaN stays NaN.
    """

    name: ClassVar[str] = "bfloat16"
    rowwise: ClassVar[bool] = True

    def encode(self, values: Tensor) -> Payload:
        """Returns the values in bfloat16."""
        largest = min(_LARGEST, torch.finfo(values.dtype).max)  # clamp refuses a bound that its input cannot hold
        return pack("bfloat16", values.dtype, ("values", values.clamp(-largest, largest).to(torch.bfloat16)))

    def decode(self, payload: Payload) -> Tensor:
        """Returns the values in the dtype that was encoded."""
        (values,) = payload.unpack("bfloat16", values=torch.bfloat16)
        return values.to(payload.dtype)
