"""Sends signs: one bit a value."""

import math
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.codecs.affine import in_parts
from fsl.codecs.codec import Codec, Payload, Way, pack
from fsl.errors import ConfigError, WireError

Scale = Literal["none", "row"]


class Binary(Codec):
    """A value's sign, that of 0 being +1, in one bit: ceil(D / 8) bytes for a row of D values.

    Decodes to +1 and -1, and loses nothing where values are such, as behind a `fsl.models.BinaryActivation` (B-SL, Pham
    et al. 2022, arXiv 2206.04864). `scale="row"` multiplies by the mean of |z| over the row, which travels as one
    number (float32 or wider): of all factors it makes the squared error smallest (XNOR-Net, Rastegari et al. 2016,
    section 3.1). Signs alone cannot carry cut gradients, since how large these are would be lost.

    A NaN has the sign -1, as the comparison with 0 says; with `scale="row"` its row is restored as NaN.
    """

    name: ClassVar[str] = "binary"
    rowwise: ClassVar[bool] = True

    @checks_types("binary.")
    def __init__(self, scale: Scale = "none") -> None:
        if scale not in get_args(Scale):
            raise ConfigError(f"binary.scale={scale!r}: what signs are multiplied by; allowed are none and row")
        self.scale = scale

    def refuse_use(self, way: Way) -> None:
        """ConfigError for cut gradients without a scale."""
        if way == "down" and self.scale == "none":
            raise ConfigError("binary: signs do not tell how large gradients are; give scale=row, or another codec")

    def remark_on(self, values: Tensor) -> str:
        """Tells where no value is below 0, as behind a ReLU, so that all signs are the same."""
        if len(values) and bool((values >= 0).all()) and bool((values > 0).any()):
            return (
                "no value at this cut is below 0, as behind a ReLU, so that signs tell nothing; use a binarized front"
            )
        return ""

    def encode(self, values: Tensor) -> Payload:
        """Returns the bits (B, ceil(D / 8)), first value first in a byte, and where asked the means of |z| (B,)."""
        rows = values.detach().reshape(len(values), math.prod(values.shape[1:]))
        bits = torch.from_numpy(np.packbits((rows >= 0).cpu().numpy(), axis=1)).to(values.device)
        arrays = [("values", bits)]
        if self.scale == "row":
            arrays.append(("scale", _mean_sizes(rows)))
        return pack(self.name, values.dtype, *arrays, shape=values.shape[1:])

    def decode(self, payload: Payload) -> Tensor:
        """Returns +1 and -1, or these times their row's scale, in the dtype that was encoded."""
        dtype, told = payload.dtype, payload.shape
        wide = torch.promote_types(dtype, torch.float32)
        bits, *scale = payload.unpack(
            self.name, values=torch.uint8, **({} if self.scale == "none" else {"scale": wide})
        )
        size, shape = math.prod(told), torch.Size((*bits.shape[:1], *told))
        self.check_size(shape, dtype)
        if bits.dim() != 2 or bits.shape[1] != -(-size // 8):
            raise WireError(f"codec 'binary' got bytes of shape {tuple(bits.shape)} for rows of shape {tuple(told)}")
        if scale and scale[0].shape != shape[:1]:
            raise WireError(f"codec 'binary' takes a scale of shape {tuple(shape[:1])}; it got {tuple(scale[0].shape)}")
        signs = torch.from_numpy(np.unpackbits(bits.cpu().numpy(), axis=1, count=size)).to(bits.device)
        rows, one, two = torch.empty(signs.shape, dtype=dtype, device=bits.device), *torch.tensor([1, 2], dtype=dtype)
        for part, room in in_parts(signs, wide):
            made = rows[part] if dtype is wide else room
            made.copy_(signs[part]).mul_(two).sub_(one)
            if scale:
                made.mul_(scale[0][part].unsqueeze(1))
            if made is room:
                rows[part].copy_(room)
        return rows.view(shape)


def _mean_sizes(rows: Tensor) -> Tensor:
    """Returns the mean of |z| of each row (B, D), in an order of additions that other rows do not change."""
    wide, width = torch.promote_types(rows.dtype, torch.float32), rows.shape[1]
    if not width:
        return torch.zeros(len(rows), dtype=wide, device=rows.device)
    half, odd = divmod(width, 2)
    sums = torch.empty(len(rows), half + odd, dtype=wide, device=rows.device)
    for part, sizes in in_parts(rows, wide):
        sizes.copy_(rows[part]).abs_()
        sums[part].copy_(sizes[:, : half + odd])[:, :half].add_(sizes[:, half + odd :])
    while sums.shape[1] > 1:  # adds one half to the other, but for a value that is left over
        half, odd = divmod(sums.shape[1], 2)
        sums[:, :half].add_(sums[:, half + odd :])
        sums = sums[:, : half + odd]
    return sums[:, 0] / width
