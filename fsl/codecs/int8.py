"""Quantizes to 8 bits by an affine map, with one scale for the tensor."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, Payload, pack
from fsl.errors import RunError, WireError


class Int8(Codec):
    """Quarters float32: values become q with value = middle + (q - 127.5) * step, q in 0..255 (per-tensor affine).

    Error: at most half a step, (max - min) / 510, and the dtype's own rounding. Decodes to the dtype that was encoded.
    RunError for values that are not finite, which have no place on the scale.
    """

    name: ClassVar[str] = "int8"

    def encode(self, values: Tensor) -> Payload:
        """Returns the quantized values (uint8), and their range's middle and step (shape (2,), float32 or wider)."""
        wide = values.to(_scale_dtype(values.dtype))
        if not wide.numel():
            return pack("int8", values.dtype, ("values", wide.to(torch.uint8)), ("scale", wide.new_zeros(2)))
        low, high = torch.aminmax(wide)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise RunError("codec int8 got a value that is not finite; training has diverged: lower the learning rate")
        # Halves the values first: their whole range may overflow the dtype.
        middle = low / 2 + high / 2
        step = high / 255 - low / 255
        # A constant has step zero, and decodes to its middle, whatever q is.
        divisor = torch.where(step > 0, step, 1)
        quantized = ((wide - middle) / divisor).add_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        return pack("int8", values.dtype, ("values", quantized), ("scale", torch.stack((middle, step))))

    def decode(self, payload: Payload) -> Tensor:
        """Returns the values in the dtype that was encoded."""
        dtype = payload.dtype
        wide = _scale_dtype(dtype)
        quantized, scale = payload.unpack("int8", values=torch.uint8, scale=wide)
        if scale.shape != (2,):
            raise WireError(f"codec 'int8' takes a scale of shape (2,); it got {tuple(scale.shape)}")
        return quantized.to(wide).sub_(127.5).mul_(scale[1]).add_(scale[0]).to(dtype)


def _scale_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
