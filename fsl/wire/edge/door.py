"""An edge's door, its gRPC server: carries one stream per session, and tells those whom it turns away why."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fsl.errors import ConfigError, TrustError, WireError
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.edge.peer_calls import PeerCalls
from fsl.wire.edge.refusal import Refusal, refusal_of
from fsl.wire.edge.served_rounds import ServedRounds
from fsl.wire.edge.session import WireSession
from fsl.wire.edge.session_stream import SessionStream
from fsl.wire.edge.signed_calls import PeerLines
from fsl.wire.edge.steps_door import StepsDoor
from fsl.wire.edge.strangers import Strangers
from fsl.wire.edge.welcome import Welcome
from fsl.wire.frame_stream import TooLarge, receive, send
from fsl.wire.loop import NetworkThread
from fsl.wire.options import METHOD, PEER_METHOD, Certificates, Limits, server_credentials, server_options
from fsl.wire.pem_files import PemFiles

log = logging.getLogger(__name__)
Code = grpc.StatusCode
Context = grpc.aio.ServicerContext
T = TypeVar("T")


class EdgeDoor:
    """The gRPC server of one edge; it stays open from round to round."""

    def __init__(
        self,
        edge: int,
        listen: str,
        certificates: Certificates | None,
        journal: Path,
        limits: Limits,
        meter: EdgeMeter | None = None,
        lines: PeerLines | None = None,
        steps: str | None = None,
        local: Path | None = None,
    ):
        """`steps`: host:port of lean streams (None: steps travel over gRPC), and `local` their Unix socket."""
        self.edge = edge
        self.lines = lines  # to other edges
        self.limits = limits
        self.meter = meter or EdgeMeter()
        self.thread = NetworkThread(f"edge-{edge}")
        strangers = Strangers(limits)
        files = None if certificates is None else certificates.edge_files()
        self.steps = None if steps is None else StepsDoor(edge, files, limits)
        self._rounds = ServedRounds(edge, limits.handshake_seconds / 2)
        self._welcome = Welcome(edge, self._rounds, strangers, journal, self.thread, limits, self.meter, self.steps)
        self._peers = PeerCalls(edge, self._rounds, strangers, lines, limits)
        try:
            self.port = self.thread.run(self._start(listen, files))
            if self.steps is not None and steps is not None:
                try:
                    self.thread.run(self.steps.start(steps, local))
                except BaseException:
                    self.thread.run(self._server.stop(None))
                    raise
        except BaseException:
            self.thread.close()
            raise

    def begin(self, admission: Admission) -> None:
        """Let the devices of a round in."""
        self.thread.call(self._rounds.begin, admission)

    def fail(self, admission: Admission, reason: str) -> None:
        """Turn a round's devices away with this reason, since the edge cannot serve the round."""
        admission.failed = reason
        self.thread.call(self._rounds.fail, admission)

    def end(self, patience: float) -> None:
        """End the round: give its last messages `patience` seconds to leave, and admit nobody until the next round."""
        self.thread.run(self._end(patience), patience + 30)

    def close(self) -> None:
        """End the server."""
        if self.steps is not None:
            self.thread.run(self.steps.close())
        self.thread.run(self._server.stop(1.0))
        if self.lines is not None:
            self.thread.run(self.lines.close())
        self.thread.close()

    async def _start(self, listen: str, files: PemFiles | None) -> int:
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._train)
        calls: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._peer)
        service, method = METHOD.strip("/").split("/")
        handlers = {method: handler, PEER_METHOD.rpartition("/")[2]: calls}
        self._server = grpc.aio.server(options=server_options(self.limits))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        try:
            if files is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, server_credentials(files))
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError(f"listen={listen}: edge {self.edge} cannot listen there; name a free host:port")
        await self._server.start()
        return port

    async def _end(self, patience: float) -> None:
        admission = self._rounds.end()
        if admission is None:
            return
        for session in admission.sessions.values():  # so that no device waits on, whatever became of the round
            if not session.finished and session.refusal is None:
                session.end(admission.without(session.claims.device))
        waiting = [session.delivered.wait() for session in admission.sessions.values() if session.connected]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*waiting), patience)

    async def _train(self, _: AsyncIterator[bytes], context: Context) -> None:
        if (admitted := await self._or_refuse(context, self._welcome.admit)) is None:
            return
        claims = admitted[0].claims
        extra = {"run": claims.run, "round": claims.round, "edge": self.edge, "device": claims.device}
        log.info(
            "edge %d, round %d: session of device %d over %s",
            *(self.edge, claims.round, claims.device, context.peer()),
            extra=extra | {"peer": context.peer()},
        )
        await self._carry(*admitted, context)

    async def _peer(self, _: AsyncIterator[bytes], context: Context) -> None:
        await self._or_refuse(context, self._peers.answer)

    async def _or_refuse(self, context: Context, hear: Callable[[Context], Awaitable[T]]) -> T | None:
        """Run `hear` for whoever is at the door; end the stream with the reason where it refuses."""
        try:
            return await hear(context)
        except Refusal as error:
            refusal = error
        except TrustError as error:
            refusal = Refusal(Code.UNAUTHENTICATED, str(error))
        except WireError as error:
            refusal = Refusal(Code.INVALID_ARGUMENT, str(error))
        self.meter.refused(refusal.code.name)
        await self._turn_away(context, refusal)
        return None

    async def _turn_away(self, context: Context, refusal: Refusal) -> None:
        extra = {"edge": self.edge, "peer": context.peer()}
        log.info("edge %d refused %s: %s", self.edge, context.peer(), refusal.reason, extra=extra)
        await context.abort(refusal.code, refusal.reason)

    # Sessions that are open.

    async def _carry(self, session: WireSession, stream: SessionStream, context: Context) -> None:
        reader = asyncio.create_task(self._listen(session, stream, context))
        writer = asyncio.create_task(_speak(stream, context))
        try:
            ends: set[asyncio.Future[Any]] = {reader, writer, stream.ended}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if stream.ended.done():
                await asyncio.wait({writer}, timeout=self.limits.send_seconds)
                refusal = stream.ended.result()
            else:
                refusal = reader.result() if reader.done() else None
            if refusal is not None:
                if session.is_on(stream):
                    session.lose(refusal)
                await self._turn_away(context, refusal)
        finally:  # also where the device hangs up first, as it does once its session is closed
            session.detach(stream)
            if session.finished or (session.refusal is not None and not session.connected):
                session.delivered.set()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _listen(self, session: WireSession, stream: SessionStream, context: Context) -> Refusal | None:
        """Take frames until the stream ends; returns the refusal that ends the session, or None."""
        try:
            while (data := await receive(context, session.most)) is not None:
                await session.take(stream, data)
        except (Refusal, TooLarge, TrustError, WireError) as error:
            return refusal_of(error)
        except grpc.aio.BaseError as error:
            extra = {"edge": self.edge, "device": session.claims.device, "peer": context.peer()}
            log.info("edge %d lost the stream of device %d: %s", self.edge, session.claims.device, error, extra=extra)
        return None


async def _speak(stream: SessionStream, context: Context) -> None:
    while (data := await stream.frames.get()) is not None:
        await send(context, data)
