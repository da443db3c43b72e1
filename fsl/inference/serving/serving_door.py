"""The door of an edge that serves a model: its gRPC server, which carries a stream per device."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from fsl.errors import ConfigError, TrustError, WireError
from fsl.inference.serving.asked_stream import AskedStream, StreamTerms
from fsl.inference.serving.desk import Desk
from fsl.inference.serving.edge_counts import EdgeCounts
from fsl.inference.serving.greeting import Greeting
from fsl.inference.serving.lean_door import LeanDoor
from fsl.inference.serving.question import Outgoing
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import record, records
from fsl.messages.versions import VersionError
from fsl.wire.edge.refusal import Refusal, refusal_of
from fsl.wire.edge.strangers import Strangers
from fsl.wire.frame_stream import TooLarge, receive, send
from fsl.wire.loop import NetworkThread
from fsl.wire.options import INFER_METHOD, Certificates, Limits, server_credentials, server_options
from fsl.wire.pem_files import PemFiles
from fsl.wire.seldom import Seldom

log = logging.getLogger(__name__)
Code = grpc.StatusCode
Context = grpc.aio.ServicerContext
_LOOK = 1.0  # seconds between two looks for streams that are stuck, or whose tokens have expired


class ServingDoor:
    """Takes devices' streams, and has the desk answer what they ask; all but the constructor on the network thread."""

    def __init__(
        self,
        thread: NetworkThread,
        limits: Limits,
        most: int,
        counts: EdgeCounts,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._thread = thread
        self._limits = limits
        self._most = most  # bytes of a frame
        self._counts = counts
        self._clock = clock
        self._wall = wall
        self._strangers = Strangers(limits)
        self._streams: dict[AskedStream, asyncio.Future[Refusal]] = {}
        self._named = Seldom()  # refusals in the log
        self._lean: LeanDoor | None = None

    async def start(
        self, listen: str, lean: str | None, certificates: Certificates | None, greeting: Greeting, desk: Desk
    ) -> int:
        """Listen, and return the port; ConfigError where nobody can listen there. `lean`: host:port of lean streams."""
        self._greeting = greeting
        self._desk = desk
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._infer)
        service, method = INFER_METHOD.strip("/").split("/")
        self._server = grpc.aio.server(options=server_options(self._limits))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        files: PemFiles | None = None
        try:
            if certificates is None:
                port = self._server.add_insecure_port(listen)
            else:
                files = certificates.edge_files()
                port = self._server.add_secure_port(listen, server_credentials(files))
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError(f"listen={listen}: an edge cannot listen there; name a free host:port")
        if lean is not None:
            self._lean = LeanDoor(files, self._limits, self._most)
            await self._lean.start(lean)
        await self._server.start()
        self._looking = asyncio.create_task(self._look())
        return port

    async def stop(self) -> None:
        """End the server; devices that wait ask elsewhere."""
        self._looking.cancel()
        for ended in self._streams.values():
            if not ended.done():
                ended.set_result(Refusal(Code.UNAVAILABLE, "this edge is closing"))
        if self._lean is not None:
            await self._lean.stop()
        await self._server.stop(1.0)

    def deliver(self, records: Sequence[Outgoing]) -> None:
        """Send records to their askers; on any thread."""
        self._thread.call(self._put, records)

    def _put(self, records: Sequence[Outgoing]) -> None:
        for one in records:
            assert isinstance(one.asker, AskedStream)
            one.asker.put(one.record)

    async def _infer(self, _: AsyncIterator[bytes], context: Context) -> None:
        try:
            async with self._strangers.place(context.peer()):
                terms = await self._hear(context)
            if len(self._streams) >= self._limits.connections:
                raise Refusal(Code.RESOURCE_EXHAUSTED, f"{len(self._streams)} devices are here; come back later")
        except TrustError as error:
            await self._turn_away(context, Refusal(Code.UNAUTHENTICATED, str(error)))
        except VersionError as error:
            await self._turn_away(context, Refusal(Code.FAILED_PRECONDITION, str(error)))
        except WireError as error:
            await self._turn_away(context, Refusal(Code.INVALID_ARGUMENT, str(error)))
        except Refusal as refusal:
            await self._turn_away(context, refusal)
        else:
            await self._carry(terms, context)

    async def _hear(self, context: Context) -> StreamTerms:
        try:
            data = await receive(context, self._limits.opening_bytes)
        except TooLarge as error:
            raise WireError(str(error)) from None
        if data is None:
            raise Refusal(Code.CANCELLED, "nobody said who is there")
        (message, rest, _), *more = records(data, pb.ToServing)
        if message.WhichOneof("body") != "knock" or rest or more:
            raise WireError("a stream begins with a Knock")
        return self._greeting.terms(message.knock)

    async def _turn_away(self, context: Context, refusal: Refusal) -> None:
        self._counts.refused(refusal.code.name)
        if self._named.lets():
            more = "; others are not named for a minute" if self._named.is_last else ""
            log.info("refused %s: %s%s", context.peer(), refusal.reason, more)
        await context.abort(refusal.code, refusal.reason)

    async def _carry(self, terms: StreamTerms, context: Context) -> None:
        stream = AskedStream(terms, self._desk, self._counts, self._clock, self._wall)
        ended = self._streams[stream] = asyncio.get_running_loop().create_future()
        self._counts.opened()
        log.info("%s asks over %s", terms.name, context.peer())
        loaded = self._greeting.loaded(terms, self._most)
        if self._lean is not None:
            loaded.ticket, loaded.port = self._lean.offer(stream), self._lean.port
        await send(context, record(pb.FromServing(loaded=loaded)))
        reader = asyncio.create_task(self._listen(stream, context))
        writer = asyncio.create_task(stream.write(context))
        try:
            ends: set[asyncio.Future[Any]] = {reader, writer, ended, stream.broken}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if (refusal := _refusal(ended, reader, stream)) is not None:
                await self._turn_away(context, refusal)
        finally:
            stream.end()
            if self._lean is not None:
                self._lean.forget(stream)
            del self._streams[stream]
            self._counts.closed()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _listen(self, stream: AskedStream, context: Context) -> Refusal | None:
        """Take frames until the stream ends; returns the refusal that ends it, or None."""
        try:
            while (data := await receive(context, self._most)) is not None:
                self._counts.came(len(data))
                for message, rest, _ in records(data, pb.ToServing):
                    if stream.is_lean:
                        raise WireError("something came beside the lean stream")
                    await stream.room()
                    stream.take(message, rest)
        except (TooLarge, WireError) as error:
            return refusal_of(error)
        except grpc.aio.BaseError as error:
            log.debug("lost a stream: %s", error)
        return None

    async def _look(self) -> None:
        """End streams that are stuck, or whose tokens have expired."""
        while True:
            await asyncio.sleep(_LOOK)
            for stream, ended in self._streams.items():
                since = stream.stuck_since
                if ended.done():
                    continue
                if since is not None and self._clock() - since > self._limits.send_seconds:
                    ended.set_result(Refusal(Code.DEADLINE_EXCEEDED, "its answers were not read in time"))
                elif stream.expired:
                    ended.set_result(Refusal(Code.UNAUTHENTICATED, "its token has expired"))


def _refusal(
    ended: "asyncio.Future[Refusal]", reader: "asyncio.Task[Refusal | None]", stream: AskedStream
) -> Refusal | None:
    """Returns why a stream ends; None where the device ended it."""
    if ended.done():
        return ended.result()
    if stream.broken.done():
        error = stream.broken.result()
        return refusal_of(error) or Refusal(Code.UNAVAILABLE, "the lean stream has ended")
    return reader.result() if reader.done() else None
