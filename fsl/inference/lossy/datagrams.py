"""What travels in one datagram, and how it is closed to others."""

import os
import struct
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fsl.errors import ConfigError, WireError

_HEAD = struct.Struct("<4sBQBHHHI")  # magic, kind, request, point, packet, packets, length of what lies beside, values
_MAGIC = b"fsl1"
_NONCE = 12
MOST_BYTES = 65_507  # of a datagram over IPv4
OVERHEAD = _HEAD.size + _NONCE + 16  # bytes of a datagram beside what it brings; 16: the seal
Kind = Literal["values", "answer"]
_KINDS: dict[str, int] = {"values": 1, "answer": 2}


@dataclass(frozen=True)
class Datagram:
    """One packet of a request, or its answer.

    `request`: chosen by the device. `point`: place among the edge's split points. `values`: how many a sample has at
    that point; of an answer, how many packets came. `beside`: what the codec says beside values, in every packet.
    """

    kind: Kind
    request: int
    point: int
    packet: int
    packets: int
    values: int
    beside: bytes
    body: bytes


class Seal:
    """Closes datagrams by AES-GCM with a key (16, 24 or 32 bytes) that both ends have, or leaves them open: `key=None`.

    Without a key anybody on the way reads and forges them: ends allow that on loopback alone.
    """

    def __init__(self, key: bytes | None) -> None:
        if key is not None and len(key) not in (16, 24, 32):
            raise ConfigError(f"key: it has {len(key)} bytes; an AES key has 16, 24 or 32")
        self._cipher = None if key is None else AESGCM(key)
        self._prefix, self._count = os.urandom(8), 0  # a nonce never comes twice: 64 random bits, and a counter

    @property
    def open(self) -> bool:
        """Whether datagrams travel as they are."""
        return self._cipher is None

    def closed(self, datagram: Datagram) -> bytes:
        """Returns a datagram's bytes."""
        head = _HEAD.pack(
            _MAGIC,
            _KINDS[datagram.kind],
            datagram.request,
            datagram.point,
            datagram.packet,
            datagram.packets,
            len(datagram.beside),
            datagram.values,
        )
        body = datagram.beside + datagram.body
        if self._cipher is None:
            return head + body
        if self._count >= 1 << 32:
            self._prefix, self._count = os.urandom(8), 0
        nonce = self._prefix + self._count.to_bytes(4, "little")
        self._count += 1
        return head + nonce + self._cipher.encrypt(nonce, body, head)

    def read(self, data: bytes) -> Datagram:
        """Returns what a datagram's bytes are; WireError for what nobody with the key has sent."""
        if len(data) < _HEAD.size:
            raise WireError(f"a datagram has {len(data)} bytes; its head alone has {_HEAD.size}")
        head, body = data[: _HEAD.size], data[_HEAD.size :]
        magic, kind, request, point, packet, packets, beside, values = _HEAD.unpack(head)
        name: Kind = "values" if kind == _KINDS["values"] else "answer"
        if magic != _MAGIC or kind not in _KINDS.values():
            raise WireError("a datagram begins as none of fsl's does")
        if self._cipher is not None:
            try:
                body = self._cipher.decrypt(body[:_NONCE], body[_NONCE:], head)
            except (InvalidTag, ValueError):
                raise WireError("a datagram was not sealed by this key") from None
        if packet >= packets or beside > len(body):
            raise WireError(f"a datagram says that it is packet {packet} of {packets}, with {beside} bytes beside")
        return Datagram(name, request, point, packet, packets, values, body[:beside], body[beside:])
