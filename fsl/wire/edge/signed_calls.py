"""Signs calls between edges, so that an edge takes sessions only from edges that the round's plan names."""

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError

from fsl.errors import TrustError, WireError
from fsl.installed import __version__
from fsl.messages import messages_pb2 as pb
from fsl.messages.versions import PROTOCOL, check_versions
from fsl.wire.connections import Call, Connections, Dialler
from fsl.wire.frame_stream import CHUNK, Reads, next_message
from fsl.wire.options import PEER_METHOD, Certificates, Limits

_PEER = b"fsl peer 2\0"
_LENGTH, _DIGEST, _SIZE = 4, 32, 8  # bytes
_FIRST = 32 << 10  # bytes of a frame that is one message


@dataclass(frozen=True)
class Peer:
    """Another edge of this round: where it is, and its public key (Ed25519, 32 bytes)."""

    edge: int
    address: str
    key: bytes


@dataclass(frozen=True)
class RoundPlace:
    """Names a round at an edge in calls: run, round, fence and edge."""

    run: str
    round: int
    fence: int
    edge: int


class PeerLines:
    """An edge's connections to other edges; `call` belongs to the network thread."""

    def __init__(self, key: Ed25519PrivateKey, certificates: Certificates | None, limits: Limits):
        self.key = key
        self._dialler = Dialler(certificates, limits)
        self._most = limits.max_message_bytes
        self._connections: dict[str, Connections] = {}

    async def call(
        self, here: RoundPlace, peer: Peer, body: Mapping[str, Any], data: bytes, timeout: float
    ) -> tuple[pb.ToPeer, bytes]:
        """Call another edge; returns its answer and the data behind it. AioRpcError, TrustError or WireError."""
        if peer.address not in self._connections:
            self._connections[peer.address] = Connections(peer.address, self._dialler)
        call = self._connections[peer.address].stream_stream(PEER_METHOD, timeout)()
        saying = asyncio.ensure_future(_say(call, sign(self.key, here, peer.edge, body, data)))
        try:
            there = RoundPlace(here.run, here.round, here.fence, peer.edge)
            first = await next_message(call)
            head = head_of(first)
            head.check(peer.key, there, here.edge)
            return check(await rest_of(first, head, call, self._most), peer.key, there, here.edge)
        finally:
            saying.cancel()
            call.cancel()
            await asyncio.gather(saying, return_exceptions=True)

    async def close(self) -> None:
        """End all connections."""
        for connections in self._connections.values():
            await connections.close()
        self._connections.clear()


@dataclass(frozen=True)
class Head:
    """A frame's beginning, not yet checked: the signed message, and size and SHA-256 of the data behind it."""

    signed: pb.SignedPeer
    said: pb.ToPeer
    digest: bytes
    size: int
    end: int  # where the data begin

    def check(self, key: bytes, there: RoundPlace, here: int) -> None:
        """Raise TrustError if edge `there` did not sign this for edge `here`, or it is of another round."""
        try:
            said = _signed(self.signed.message, self.digest, self.size)
            Ed25519PublicKey.from_public_bytes(key).verify(self.signed.signature, said)
        except InvalidSignature:
            raise TrustError(f"edge {there.edge} did not sign this, or it was changed on its way") from None
        named = (self.said.run, self.said.round, self.said.fence, self.said.source, self.said.destination)
        if named != (there.run, there.round, there.fence, there.edge, here):
            raise TrustError(f"edge {there.edge} says something of another round, or to another edge")
        check_versions(self.said.protocol, self.said.version, f"edge {there.edge}", f"edge {here}")


def sign(key: Ed25519PrivateKey, here: RoundPlace, to: int, body: Mapping[str, Any], data: bytes = b"") -> bytes:
    """Sign a message to another edge into a frame: head's length, head, digest and size of data, data."""
    said = pb.ToPeer(
        run=here.run,
        round=here.round,
        fence=here.fence,
        source=here.edge,
        destination=to,
        protocol=PROTOCOL,
        version=__version__,
        **body,
    )
    message, digest = said.SerializeToString(), hashlib.sha256(data).digest()
    signature = key.sign(_signed(message, digest, len(data)))
    signed = pb.SignedPeer(message=message, signature=signature).SerializeToString()
    size = len(data).to_bytes(_SIZE, "little")
    return b"".join([len(signed).to_bytes(_LENGTH, "little"), signed, digest, size, data])


def head_of(frame: bytes) -> Head:
    """Parse the head of a frame, or of its first message; WireError for what is none."""
    at = _LENGTH + int.from_bytes(frame[:_LENGTH], "little")
    end = at + _DIGEST + _SIZE
    if len(frame) < end:
        raise WireError(f"a frame of {len(frame)} bytes is cut short")
    try:
        signed = pb.SignedPeer.FromString(frame[_LENGTH:at])
        said = pb.ToPeer.FromString(signed.message)
    except DecodeError:
        raise WireError("a frame does not begin with what an edge says to another") from None
    size = int.from_bytes(frame[at + _DIGEST : end], "little")
    return Head(signed, said, frame[at : at + _DIGEST], size, end)


def check(frame: bytes, key: bytes, there: RoundPlace, here: int) -> tuple[pb.ToPeer, bytes]:
    """Read what edge `there` says to edge `here`; TrustError if it did not sign it, or it is of another round."""
    head = head_of(frame)
    head.check(key, there, here)
    data = frame[head.end :]
    if len(data) != head.size or hashlib.sha256(data).digest() != head.digest:
        raise TrustError(f"what edge {there.edge} sent was changed on its way")
    return head.said, data


def messages(frame: bytes) -> Iterator[bytes]:
    """Yields a frame's messages; the first is small, so that an edge can read it from anybody."""
    start = len(frame) if len(frame) <= _FIRST else head_of(frame).end
    yield frame[:start]
    for begin in range(start, len(frame), CHUNK):
        yield frame[begin : begin + CHUNK]


async def rest_of(first: bytes, head: Head, stream: Reads, most: int) -> bytes:
    """Read the rest of a frame whose head is checked; returns it whole. WireError beyond `most` bytes."""
    if head.size > most:
        raise WireError(f"{head.size} bytes are above max-message-bytes={most}")
    parts, left = [first], head.end + head.size - len(first)
    while left > 0:
        message = await stream.read()
        if message is grpc.aio.EOF:
            raise WireError(f"a call ended {left} bytes early")
        parts.append(message)
        left -= len(message)
    return first if len(parts) == 1 else b"".join(parts)


async def _say(call: Call, frame: bytes) -> None:
    for message in messages(frame):
        await call.write(message)
    await call.done_writing()


def _signed(message: bytes, digest: bytes, size: int) -> bytes:
    return _PEER + hashlib.sha256(message).digest() + digest + size.to_bytes(_SIZE, "little")
