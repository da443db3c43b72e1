"""8-bit affine quantization, one scale for the tensor."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl.codecs.base import Codec, Payload
from fsl.errors import RunError


class Int8(Codec):
    """Quarters float32: values become q with value = middle + (q - 127.5) * step, q in 0..255 (per-tensor affine).

    Error: at most half a step, (max - min) / 510, and float32 rounding. Values that are not finite are refused:
    they have no place on the scale. Decodes to float32.
    """

    name: ClassVar[str] = "int8"

    def encode(self, values: Tensor) -> Payload:
        """The quantized values (uint8) with the range's middle and step (float32, shape (2,))."""
        wide = values.to(torch.float32)
        if not wide.numel():
            return Payload("int8", (("values", wide.to(torch.uint8)), ("scale", wide.new_zeros(2))))
        low, high = torch.aminmax(wide)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise RunError("codec int8 got a value that is not finite; training has diverged: lower the learning rate")
        # Halves first: the whole range may be more than float32 holds.
        middle = low / 2 + high / 2
        step = high / 255 - low / 255  # zero for a constant, which is then its own middle
        quantized = (
            ((wide - middle) / step.clamp_min(torch.finfo(torch.float32).tiny))
            .add_(127.5)
            .round_()
            .clamp_(0, 255)
            .to(torch.uint8)
        )
        return Payload("int8", (("values", quantized), ("scale", torch.stack((middle, step)))))

    def decode(self, payload: Payload) -> Tensor:
        """The values in float32."""
        (_, quantized), (_, scale) = payload.arrays
        return quantized.to(torch.float32).sub_(127.5).mul_(scale[1]).add_(scale[0])
