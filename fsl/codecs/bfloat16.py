"""16-bit floating point (bfloat16)."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl.codecs.base import Codec, Payload


class BFloat16(Codec):
    """Halves float32: each value to the nearest bfloat16, which keeps float32's range.

    Error: relative 2^-8 in the normal range.
    Decodes to float32.
    """

    name: ClassVar[str] = "bfloat16"

    def encode(self, values: Tensor) -> Payload:
        """The values in bfloat16."""
        return Payload("bfloat16", (("values", values.to(torch.bfloat16)),))

    def decode(self, payload: Payload) -> Tensor:
        """The values in float32."""
        return payload.arrays[0][1].to(torch.float32)
