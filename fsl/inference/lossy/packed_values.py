"""Takes what a codec makes of one sample apart into packets, and puts it together from those that came."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, Payload
from fsl.errors import ConfigError, WireError
from fsl.inference.lossy.datagrams import MOST_BYTES, OVERHEAD
from fsl.inference.split_points import OUTPUT, SplitPoints
from fsl.messages.frames import tensor_bytes
from fsl.packets import Packing, Reception

_MOST_BESIDE = 64  # bytes, in each packet


@dataclass(frozen=True)
class _Array:
    name: str
    dtype: torch.dtype
    shape: torch.Size


class PackedValues:
    """Packs a sample (1, ...) of one shape, coded value by value, so that a lost packet takes its own values alone.

    `make`: makes a codec that sends one number for each value, and little beside: identity, float16, bfloat16, int8
    (for the tensor or by sample). ConfigError for others: a lost packet of theirs would take everything with it.
    """

    def __init__(self, make: Callable[[], Codec], shape: torch.Size, dtype: torch.dtype, packing: Packing) -> None:
        self._codec, self.shape, self.packing = make(), shape, packing
        self.size = shape.numel()
        self.packets = packing.count(self.size)
        self._packet_of = packing.packet_of(self.size)
        self._places = [(self._packet_of == packet).nonzero().flatten() for packet in range(self.packets)]
        name = self._codec.name
        # Values of both signs, so that no array is empty by chance.
        arrays = self._codec.encode(torch.linspace(-1, 1, self.size, dtype=dtype).view(1, *shape)).arrays
        self._arrays = [_Array(key, array.dtype, array.shape) for key, array in arrays]
        main = [array for array in self._arrays if array.shape.numel() == self.size]
        beside = sum(a.shape.numel() * a.dtype.itemsize for a in self._arrays) - (
            main[0].shape.numel() * main[0].dtype.itemsize if main else 0
        )
        fits = len(main) == 1 and self._codec.fixed_size and not self._codec.stateful and beside <= _MOST_BESIDE
        if not fits or self.size < 2:
            raise ConfigError(
                f"codec={name}: a lost packet would take other packets' values with it; over a lossy link use "
                "identity, float16, bfloat16, or int8"
            )
        self._main, self._beside = main[0], beside
        most = max(len(places) for places in self._places) * self._main.dtype.itemsize + beside + OVERHEAD
        if most > MOST_BYTES:
            raise ConfigError(
                f"packing.values={packing.values}: a datagram would have {most} bytes, and UDP takes {MOST_BYTES}; "
                "lower it"
            )

    def packed(self, values: Tensor) -> tuple[bytes, list[bytes]]:
        """Returns what is told beside, and each packet's bytes, of a sample (1, ...)."""
        arrays = dict(self._codec.encode(values).arrays)
        main = arrays.pop(self._main.name).reshape(-1)
        beside = b"".join(bytes(tensor_bytes(arrays[a.name])) for a in self._arrays if a is not self._main)
        return beside, [bytes(tensor_bytes(main[places])) for places in self._places]

    def body_bytes(self, packet: int) -> int:
        """Returns the bytes of a packet's values."""
        return len(self._places[packet]) * self._main.dtype.itemsize

    def check(self, packet: int, packets: int, values: int, beside: bytes, body: bytes) -> None:
        """Raise WireError where a datagram is no packet of such a sample."""
        if (packets, values) != (self.packets, self.size) or len(beside) != self._beside:
            raise WireError(
                f"a datagram tells of {values} values in {packets} packets; here are {self.size} in {self.packets}"
            )
        if len(body) != self.body_bytes(packet):
            raise WireError(f"packet {packet} has {len(body)} bytes; it must have {self.body_bytes(packet)}")

    def values(self, bodies: dict[int, bytes], beside: bytes, reception: Reception, loss: float) -> Tensor:
        """Returns a sample (1, ...) from the packets that came; WireError where its numbers are no values."""
        main = torch.zeros(self.size, dtype=self._main.dtype)
        came = torch.zeros(1, self.packets, dtype=torch.bool)
        for packet, body in bodies.items():
            main[self._places[packet]] = torch.frombuffer(bytearray(body), dtype=self._main.dtype)
            came[0, packet] = True
        arrays, start = [], 0
        for array in self._arrays:
            if array is self._main:
                arrays.append((array.name, main.view(array.shape)))
                continue
            size = array.shape.numel() * array.dtype.itemsize
            part = bytearray(beside[start : start + size])
            told = torch.frombuffer(part, dtype=array.dtype) if size else torch.empty(0, dtype=array.dtype)
            arrays.append((array.name, told.view(array.shape)))
            start += size
        decoded = self._codec.decode(Payload(self._codec.name, tuple(arrays)))
        factors = reception.factors(came, self._packet_of, loss).view(decoded.shape).to(decoded.dtype)
        # Where nothing came there is nothing to multiply: what a codec makes of zeros may be any number.
        found = torch.where(factors > 0, decoded * factors, torch.zeros_like(decoded))
        if not bool(found.isfinite().all()):
            raise WireError("values that came in packets are not finite")
        return found


def packed_at(points: SplitPoints, place: int, codec: Callable[[], Codec], packing: Packing) -> PackedValues:
    """Returns how samples are packed at one of a model's points, by its place; ConfigError where they cannot be."""
    if place >= len(points.names):
        raise ConfigError(f"point {place}: the model has {len(points.names)} points")
    if points.names[place] == OUTPUT:
        raise ConfigError(f"point={OUTPUT!r}: nothing crosses there; the device computes everything itself")
    crossing = points.crossing(points.names[place]).values
    if not isinstance(crossing, Tensor) or not crossing.is_floating_point():
        raise ConfigError(
            f"point={points.names[place]!r}: several tensors cross there, or whole numbers; a lossy link takes one "
            "tensor of activations"
        )
    return PackedValues(codec, torch.Size(crossing.shape[1:]), crossing.dtype, packing)
