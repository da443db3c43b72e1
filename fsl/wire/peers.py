"""Calls between edges: signed, so that an edge takes sessions only from edges that the round's plan names."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError

from fsl import __version__
from fsl.errors import TrustError, WireError
from fsl.versions import PROTOCOL, check_versions
from fsl.wire import messages_pb2 as pb
from fsl.wire.options import PEER_METHOD, Certificates, Limits, channel_options

_PEER = b"fsl peer 1\0"
_LENGTH = 4


@dataclass(frozen=True)
class Peer:
    """Another edge of this round: where it is, and its public key (Ed25519, 32 bytes)."""

    edge: int
    address: str
    key: bytes


@dataclass(frozen=True)
class Place:
    """A round at an edge, as calls name it."""

    run: str
    round: int
    fence: int
    edge: int


class PeerLines:
    """An edge's connections to other edges; `call` belongs to the network thread."""

    def __init__(self, key: Ed25519PrivateKey, certificates: Certificates | None, limits: Limits):
        self.key = key
        self._certificates = certificates
        self._options = channel_options(limits.max_message_bytes)
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def call(
        self, here: Place, peer: Peer, body: Mapping[str, Any], data: bytes, timeout: float
    ) -> tuple[pb.ToPeer, bytes]:
        """Say something to another edge; its answer, and what follows that. AioRpcError, TrustError or WireError."""
        request = sign(self.key, here, peer.edge, body, data)
        call: Callable[..., Awaitable[bytes]] = self._channel(peer.address).unary_unary(PEER_METHOD)
        answer = await call(request, timeout=timeout)
        there = Place(here.run, here.round, here.fence, peer.edge)
        return check(answer, peer.key, there, here.edge)

    async def close(self) -> None:
        """End all connections."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            if self._certificates is None:
                self._channels[address] = grpc.aio.insecure_channel(address, options=self._options)
            else:
                credentials = self._certificates.channel()
                self._channels[address] = grpc.aio.secure_channel(address, credentials, options=self._options)
        return self._channels[address]


def sign(key: Ed25519PrivateKey, here: Place, to: int, body: Mapping[str, Any], data: bytes = b"") -> bytes:
    """What an edge says to another, signed, with data behind it."""
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
    message = said.SerializeToString()
    signed = pb.SignedPeer(message=message, signature=key.sign(_signed(message, data))).SerializeToString()
    return b"".join([len(signed).to_bytes(_LENGTH, "little"), signed, data])


def read(frame: bytes) -> tuple[pb.SignedPeer, pb.ToPeer, bytes]:
    """What a frame says, before it is believed; WireError for what is no frame."""
    end = _LENGTH + int.from_bytes(frame[:_LENGTH], "little")
    if len(frame) < _LENGTH or end > len(frame):
        raise WireError(f"a frame of {len(frame)} bytes is cut short")
    try:
        signed = pb.SignedPeer.FromString(frame[_LENGTH:end])
        return signed, pb.ToPeer.FromString(signed.message), frame[end:]
    except DecodeError:
        raise WireError("a frame does not begin with what an edge says to another") from None


def check(frame: bytes, key: bytes, there: Place, here: int) -> tuple[pb.ToPeer, bytes]:
    """What edge `there` says to edge `here`; TrustError if it did not sign it, or it is of another round."""
    signed, said, data = read(frame)
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signed.signature, _signed(signed.message, data))
    except InvalidSignature:
        raise TrustError(f"edge {there.edge} did not sign this, or it was changed on its way") from None
    named = (said.run, said.round, said.fence, said.source, said.destination)
    if named != (there.run, there.round, there.fence, there.edge, here):
        raise TrustError(f"edge {there.edge} says something of another round, or to another edge")
    check_versions(said.protocol, said.version, f"edge {there.edge}", f"edge {here}")
    return said, data


def _signed(message: bytes, data: bytes) -> bytes:
    return _PEER + hashlib.sha256(message).digest() + hashlib.sha256(data).digest()
