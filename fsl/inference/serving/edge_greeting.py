"""How a device begins at an edge that serves a model: what both say first, and the lean stream beside."""

import asyncio
import logging
import socket
from dataclasses import dataclass
from typing import Any

import grpc

from fsl.errors import WireError
from fsl.installed import __version__
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import record, records
from fsl.messages.versions import PROTOCOL, check_versions
from fsl.quoting import one_line
from fsl.wire.connections import Call
from fsl.wire.frame_stream import ended, next_message, receive, send
from fsl.wire.steps.opening import connect
from fsl.wire.tls import TlsContexts

log = logging.getLogger(__name__)
Code = grpc.StatusCode
# With these codes an edge refuses what this device is or asks for, which lasts; else the connection is at fault.
REFUSALS = frozenset(
    {
        Code.FAILED_PRECONDITION,
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.UNIMPLEMENTED,
    }
)
_STATUS = 0.25  # seconds for an edge to say why a lean stream broke
_PROBES = 2.0  # seconds between two probes
_LEAN = 5.0  # seconds for a lean stream to open


@dataclass(frozen=True, kw_only=True)
class LinkTerms:
    """What a device says at each edge: its token, its model's digest, points that it needs and codecs that it has.

    `most`: bytes of a frame that may come. `handshake_seconds`: for an edge to say what it has. `lean`: it wants a lean
    stream where the edge has one.
    """

    token: bytes
    model: str
    points: tuple[str, ...]
    codecs: tuple[str, ...]
    most: int
    handshake_seconds: float
    lean: bool = True
    probe_seconds: float = _PROBES


async def greet(call: Call, terms: LinkTerms) -> pb.Loaded:
    """Knock, and return what the edge has; AioRpcError where it refuses, WireError or VersionError for what it says."""
    knock = pb.Knock(
        token=terms.token,
        protocol=PROTOCOL,
        version=__version__,
        model=terms.model,
        points=terms.points,
        codecs=terms.codecs,
    )
    try:
        await send(call, record(pb.ToServing(knock=knock)))
    except grpc.aio.AioRpcError:  # gRPC reports INTERNAL for a write to a refused stream
        raise await ended(call) from None
    (message, rest, _), *more = records(await next_message(call), pb.FromServing)
    if message.WhichOneof("body") != "loaded" or rest or more:
        raise WireError("the edge did not say what it has loaded")
    check_versions(message.loaded.protocol, message.loaded.version, "the edge", "this device")
    return message.loaded


async def opened_lean(address: str, loaded: pb.Loaded, contexts: TlsContexts | None) -> socket.socket | None:
    """Open the lean stream that an edge offers; None where it offers none, or it cannot be reached."""
    if not loaded.ticket:
        return None
    where = f"{address.rpartition(':')[0]}:{loaded.port}"
    try:
        async with asyncio.timeout(_LEAN):
            return await connect(where, None if contexts is None else contexts.present(), loaded.ticket)
    except (OSError, TimeoutError) as error:
        reason = one_line(str(error), 200) or type(error).__name__
        log.warning(
            "the lean stream of edge %s at %s cannot be opened (%s): gRPC carries questions", address, where, reason
        )
        return None


async def until_lean_ends(call: Call, broken: "asyncio.Future[Exception]") -> None:
    """Wait for the end of a lean stream or of its gRPC stream, which tells why an edge ends both; raises what did."""
    told = asyncio.ensure_future(receive(call, 0))
    try:
        ends: set[asyncio.Future[Any]] = {told, broken}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            await asyncio.wait({told}, timeout=_STATUS)
        if told.done() and told.result() is not None:
            raise WireError("the edge said something beside the lean stream")
        raise await ended(call) if told.done() else broken.result()
    finally:
        told.cancel()
