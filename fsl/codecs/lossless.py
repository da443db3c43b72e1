"""What codecs have in common that make bytes fewer and give all of them back."""

import zlib
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsl.codecs.codec import Codec, Payload, described
from fsl.errors import WireError

Bytes = NDArray[np.uint8]

_CHECK = 4  # bytes of the checksum (CRC-32) behind what was packed


class Lossless(Codec):
    """A codec of bytes: takes arrays of any dtype and gives back their bits.

    It packs the bytes of equal significance behind each other: of floating-point numbers, those of the exponents are
    alike. Where that makes them no fewer, the array travels as it is. A payload's size depends on the values.
    """

    lossless: ClassVar[bool] = True
    fixed_size: ClassVar[bool] = False

    @abstractmethod
    def compress(self, planes: Bytes) -> bytes:
        """Returns fewer bytes, if possible, that stand for these (W, n): n of each significance, W a number's bytes."""

    @abstractmethod
    def expand(self, packed: Bytes, planes: Bytes) -> None:
        """Fill planes (W, n) with what was compressed to `packed`; they may lie anywhere in memory.

        ValueError for what `compress` does not make of so many bytes; no more memory than a few times the planes'.
        """

    def encode(self, values: Tensor) -> Payload:
        """Returns an array `packed` of bytes and an empty one that tells dtype and shape, or an array `plain`."""
        values = values.detach()
        planes = _planes(values.cpu().contiguous())
        packed = self.compress(planes)
        if len(packed) + _CHECK >= values.nbytes:
            return Payload(self.name, (("plain", values),))
        data = np.frombuffer(packed + zlib.crc32(planes.tobytes()).to_bytes(_CHECK, "little"), np.uint8)
        told = torch.empty(0, *values.shape, dtype=values.dtype)
        return Payload(self.name, (("packed", torch.from_numpy(data.copy()).to(values.device)), ("of", told)))

    def decode(self, payload: Payload) -> Tensor:
        """Returns the array that was encoded; WireError for bytes that nobody encodes."""
        arrays = dict(payload.arrays)
        if payload.codec == self.name and [name for name, _ in payload.arrays] == ["plain"]:
            return arrays["plain"]
        if payload.codec != self.name or set(arrays) != {"packed", "of"} or len(arrays) != len(payload.arrays):
            raise WireError(
                f"codec '{self.name}' takes bytes and an array that tells of them; it got {described(payload)}"
            )
        packed, of = arrays["packed"], arrays["of"]
        if packed.dtype is not torch.uint8 or packed.dim() != 1 or not of.dim() or len(of):
            raise WireError(f"codec '{self.name}' got packed bytes {packed.dtype} of shape {tuple(packed.shape)}")
        values = torch.empty(self.check_size(of.shape[1:], of.dtype), dtype=of.dtype)
        planes, data = _planes(values), packed.cpu().contiguous().numpy()
        try:
            self.expand(data[:-_CHECK], planes)
        except ValueError as error:
            raise WireError(f"codec '{self.name}' cannot read what came: {error}") from None
        if zlib.crc32(planes.tobytes()).to_bytes(_CHECK, "little") != data[-_CHECK:].tobytes():
            raise WireError(f"codec '{self.name}' got bytes that were changed on their way: their checksum is another")
        if of.dtype is torch.bool and bool((values.view(torch.uint8) > 1).any()):
            raise WireError(f"codec '{self.name}' got truth values that are neither 0 nor 1")
        return values.to(packed.device)


def _planes(values: Tensor) -> Bytes:
    """Returns a view (W, n) of an array's bytes, by their significance in its n numbers of W bytes."""
    planes: Bytes = values.reshape(-1).view(torch.uint8).numpy().reshape(values.numel(), values.itemsize).T
    return planes
