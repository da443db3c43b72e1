"""An edge's door: one gRPC stream per session, who may come in, and what is said to those who may not."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from fsl import __version__
from fsl.errors import ConfigError, TrustError, WireError
from fsl.versions import PROTOCOL, VersionError, check_versions
from fsl.wire import messages_pb2 as pb
from fsl.wire.admission import Admission
from fsl.wire.format import frame, read_frame
from fsl.wire.journal import Journal
from fsl.wire.loop import NetworkThread
from fsl.wire.meter import EdgeMeter
from fsl.wire.options import METHOD, PEER_METHOD, Certificates, Limits, channel_options
from fsl.wire.peers import PeerLines
from fsl.wire.peers import check as check_peer
from fsl.wire.peers import read as read_peer
from fsl.wire.peers import sign as sign_peer
from fsl.wire.session import Joined, Refusal, Stream, WireSession
from fsl.wire.tokens import Claims, check_proof, fingerprint

log = logging.getLogger(__name__)
Code = grpc.StatusCode
Context = grpc.aio.ServicerContext


class EdgeDoor:
    """The gRPC server of one edge; rounds come and go behind it."""

    def __init__(
        self,
        edge: int,
        listen: str,
        certificates: Certificates | None,
        journal: Path,
        limits: Limits,
        meter: EdgeMeter | None = None,
        lines: PeerLines | None = None,
    ):
        self.edge = edge
        self.lines = lines  # to other edges
        self.limits = limits
        self.meter = meter or EdgeMeter()
        self.thread = NetworkThread(f"edge-{edge}")
        self._journal = Journal(journal)
        self._admission: Admission | None = None
        self._begun = asyncio.Event()  # there is an admission
        self._last: Admission | None = None  # of the round before
        self._handshakes = 0
        self._calls = 0  # of other edges, that are not answered yet
        try:
            self.port = self.thread.run(self._start(listen, certificates))
        except BaseException:
            self.thread.close()
            raise

    def begin(self, admission: Admission) -> None:
        """Let the devices of a round in."""
        self.thread.call(self._begin, admission)

    def end(self, patience: float) -> None:
        """The round is over: give the last messages so long to get out, and let nobody in until the next."""
        self.thread.run(self._end(patience), patience + 30)

    def close(self) -> None:
        """End the server."""
        self.thread.run(self._server.stop(1.0))
        if self.lines is not None:
            self.thread.run(self.lines.close())
        self.thread.close()

    async def _start(self, listen: str, certificates: Certificates | None) -> int:
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._train)
        calls: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._peer)
        service, method = METHOD.strip("/").split("/")
        handlers = {method: handler, PEER_METHOD.rpartition("/")[2]: calls}
        self._server = grpc.aio.server(options=channel_options(self.limits.max_message_bytes))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        try:
            if certificates is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, certificates.server())
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError(f"listen={listen}: edge {self.edge} cannot listen there; name a free host:port")
        await self._server.start()
        return port

    def _begin(self, admission: Admission) -> None:
        self._admission = admission
        self._begun.set()

    async def _end(self, patience: float) -> None:
        admission, self._admission = self._admission, None
        self._begun.clear()
        self._last = admission
        if admission is not None:
            waiting = [session.delivered.wait() for session in admission.sessions.values() if session.connected]
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*waiting), patience)

    async def _train(self, _: AsyncIterator[bytes], context: Context) -> None:
        try:
            session, stream = await self._admit(context)
        except Refusal as refusal:
            await self._refuse(context, refusal)
        except TrustError as error:
            await self._refuse(context, Refusal(Code.UNAUTHENTICATED, str(error)))
        except WireError as error:
            await self._refuse(context, Refusal(Code.INVALID_ARGUMENT, str(error)))
        else:
            await self._carry(session, stream, context)

    async def _refuse(self, context: Context, refusal: Refusal) -> None:
        """Turn away somebody who is at the door."""
        self.meter.refused(refusal.code.name)
        await self._turn_away(context, refusal)

    async def _turn_away(self, context: Context, refusal: Refusal) -> None:
        extra = {"edge": self.edge, "peer": context.peer()}
        log.info("edge %d refused %s: %s", self.edge, context.peer(), refusal.reason, extra=extra)
        await context.abort(refusal.code, refusal.reason)

    # Who comes in.

    async def _admit(self, context: Context) -> tuple[WireSession, Stream]:
        if self._handshakes >= self.limits.handshakes:
            raise Refusal(Code.RESOURCE_EXHAUSTED, f"{self.limits.handshakes} others are at the door; come back later")
        self._handshakes += 1
        try:
            return await asyncio.wait_for(self._handshake(context), self.limits.handshake_seconds)
        except TimeoutError:
            raise Refusal(Code.DEADLINE_EXCEEDED, "the session was not opened in time") from None
        finally:
            self._handshakes -= 1

    async def _handshake(self, context: Context) -> tuple[WireSession, Stream]:
        opening = (await _read(context, "open")).open
        admission = await self._current(opening.token)
        claims = admission.check(opening.token)
        if fingerprint(opening.public_key) != claims.fingerprint:
            raise TrustError(f"the token of device {claims.device} is for another key")
        theirs, here = f"device {claims.device}", f"edge {self.edge}"
        try:
            check_versions(opening.protocol, opening.version, theirs, here)
        except VersionError as error:
            raise Refusal(Code.FAILED_PRECONDITION, str(error)) from None
        nonce = secrets.token_bytes(32)
        challenge = pb.Challenge(nonce=nonce, protocol=PROTOCOL, version=__version__)
        await context.write(frame(pb.ToDevice(challenge=challenge)))
        proof = (await _read(context, "proof")).proof
        check_proof(proof.signature, opening.public_key, nonce, self.edge, opening.token)
        if (opening.up, opening.down) != (admission.up, admission.down):
            raise Refusal(
                Code.FAILED_PRECONDITION,
                f"this round's codecs are {admission.up} and {admission.down}; the device has others",
            )
        session = self._session(admission, claims, opening)
        if session is None and admission.desk is not None:
            session = await admission.desk.fetch(claims, opening)
        if session is None:
            session = await self._new_session(admission, claims, opening)
        if not session.joined:
            session.joined = True
            admission.inbox.put(Joined(claims.device))
        stream = session.attach(opening.served)
        opened = pb.Opened(
            secret=session.secret,
            received=session.received,
            queue=self.limits.queue,
            max_bytes=self.limits.max_message_bytes,
        )
        await context.write(frame(pb.ToDevice(opened=opened)))
        extra = {"run": claims.run, "round": claims.round, "edge": self.edge, "device": claims.device}
        log.info(
            "edge %d, round %d: session of device %d over %s",
            *(self.edge, claims.round, claims.device, context.peer()),
            extra=extra | {"peer": context.peer()},
        )
        return session, stream

    async def _current(self, token: bytes) -> Admission:
        """This round's admission. Devices hear of a round when the edge does, so who comes before it waits a little.

        Not where half of the places at the door are taken: whoever is refused for that comes back.
        """
        if (last := self._of_last(token)) is not None:
            return last
        if self._admission is None and self._handshakes <= self.limits.handshakes // 2:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), self.limits.handshake_seconds / 2)
        if self._admission is None:
            raise Refusal(Code.UNAVAILABLE, f"edge {self.edge} serves no round now")
        return self._admission

    def _of_last(self, token: bytes) -> Admission | None:
        """The admission of the round before, for who was closed there and may not have heard of it."""
        if self._last is None:
            return None
        try:
            claims = self._last.check(token)
        except (Refusal, TrustError):
            return None
        session = self._last.sessions.get(claims.device)
        if session is None or not session.finished:
            reason = f"round {claims.round} is over at edge {self.edge}, without device {claims.device}"
            raise Refusal(Code.FAILED_PRECONDITION, reason)
        return self._last

    def _session(self, admission: Admission, claims: Claims, opening: pb.Open) -> WireSession | None:
        """The session that a device comes back to; None where it has none yet."""
        session = admission.sessions.get(claims.device)
        if session is None:
            if opening.secret:
                raise Refusal(Code.FAILED_PRECONDITION, f"edge {self.edge} has no session of device {claims.device}")
            return None
        if session.moved and not opening.secret:
            return None  # it comes back, and its session is elsewhere
        if session.refusal is not None:
            raise session.refusal
        # Who never heard the secret, since the connection broke before, has proven the device's key, and may come in.
        if not session.same(opening.secret) and not (session.unheard and not opening.secret):
            raise Refusal(Code.ALREADY_EXISTS, f"device {claims.device} has a session at edge {self.edge} already")
        return session

    async def _new_session(self, admission: Admission, claims: Claims, opening: pb.Open) -> WireSession:
        session = WireSession(claims, opening.token, admission.inbox, self.thread, self.limits.queue, self.meter)
        before = admission.sessions.get(claims.device)
        admission.sessions[claims.device] = session  # before anything is awaited: there is one per device
        if before is not None and before.moved:
            return session
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(None, self._journal.enter, claims):
            session.refusal = Refusal(
                Code.FAILED_PRECONDITION,
                f"the token of device {claims.device} was used before, at a session that edge {self.edge} lost",
            )
            raise session.refusal
        return session

    # Other edges.

    async def _peer(self, request: bytes, context: Context) -> bytes:
        self._calls += 1
        try:
            if self._calls > self.limits.handshakes:
                raise Refusal(Code.RESOURCE_EXHAUSTED, f"{self.limits.handshakes} others call; come back later")
            _, said, _ = read_peer(request)
            admission = await self._round_of(said)
            desk = admission.desk
            if desk is None or said.source not in desk.peers or self.lines is None:
                raise Refusal(Code.PERMISSION_DENIED, f"edge {said.source} has no part in round {said.round}")
            there = replace(desk.here, edge=said.source)
            said, data = check_peer(request, desk.peers[said.source].key, there, self.edge)
            body, behind = await desk.answer(said, data)
            return sign_peer(self.lines.key, desk.here, said.source, body, behind)
        except Refusal as refusal:
            code, reason = refusal.code, refusal.reason
        except TrustError as error:
            code, reason = Code.UNAUTHENTICATED, str(error)
        except WireError as error:
            code, reason = Code.INVALID_ARGUMENT, str(error)
        finally:
            self._calls -= 1
        await self._refuse(context, Refusal(code, reason))
        return b""

    async def _round_of(self, said: pb.ToPeer) -> Admission:
        """The admission of the round that another edge speaks of; it may be a moment ahead of this one."""
        named = (said.run, said.round, said.fence)
        for _ in range(2):
            for admission in (self._admission, self._last):
                if admission is not None and (admission.run, admission.round, admission.fence) == named:
                    return admission
            with suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), self.limits.handshake_seconds / 2)
        raise Refusal(Code.UNAVAILABLE, f"edge {self.edge} does not serve round {said.round} of run {said.run[:80]!r}")

    # Who is in.

    async def _carry(self, session: WireSession, stream: Stream, context: Context) -> None:
        reader = asyncio.create_task(self._listen(session, context))
        writer = asyncio.create_task(_speak(stream, context))
        try:
            ends: set[asyncio.Future[Any]] = {reader, writer, stream.ended}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if stream.ended.done():
                await asyncio.wait({writer})
                refusal = stream.ended.result()
            else:
                refusal = reader.result() if reader.done() else None
            if refusal is not None:
                if session.is_on(stream):
                    session.lose(refusal)
                await self._turn_away(context, refusal)
        finally:  # also where the device hangs up first, as it does when it is closed
            session.detach(stream)
            if session.finished:
                session.delivered.set()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _listen(self, session: WireSession, context: Context) -> Refusal | None:
        """Take what comes until the stream ends; why the session is to end, if it is."""
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                await session.take(data)
        except Refusal as refusal:
            return refusal
        except TrustError as error:
            return Refusal(Code.PERMISSION_DENIED, str(error))
        except WireError as error:
            return Refusal(Code.INVALID_ARGUMENT, str(error))
        except grpc.aio.BaseError as error:
            extra = {"edge": self.edge, "device": session.claims.device, "peer": context.peer()}
            log.info("edge %d lost the stream of device %d: %s", self.edge, session.claims.device, error, extra=extra)
        return None


async def _read(context: Context, kind: str) -> pb.ToEdge:
    data = await context.read()
    if data is grpc.aio.EOF:
        raise WireError(f"the stream ended where the {kind} of a session is next")
    message, rest = read_frame(data, pb.ToEdge)
    if message.WhichOneof("body") != kind or rest:
        raise WireError(f"the {kind} of a session is next; something else came")
    return message


async def _speak(stream: Stream, context: Context) -> None:
    while (data := await stream.frames.get()) is not None:
        await context.write(data)
