"""Takes a stream at an edge's door from its first message to the session that it carries."""

import asyncio
import secrets
from functools import partial
from pathlib import Path

import grpc

from fsl.errors import TrustError, WireError
from fsl.installed import __version__
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import frame
from fsl.messages.heads import read_frame
from fsl.messages.versions import PROTOCOL, VersionError, check_versions
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.journal import Journal
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.served_rounds import ServedRounds
from fsl.wire.edge.session import WireSession
from fsl.wire.edge.session_events import Joined
from fsl.wire.edge.session_stream import SessionStream
from fsl.wire.edge.steps_door import StepsDoor
from fsl.wire.edge.strangers import Strangers
from fsl.wire.frame_stream import CHUNK
from fsl.wire.loop import NetworkThread
from fsl.wire.options import Limits
from fsl.wire.tokens import Claims, check_proof, fingerprint

Code = grpc.StatusCode
Context = grpc.aio.ServicerContext


async def first_words(context: Context, limits: Limits) -> bytes | None:
    """Read the next message of a stranger's stream; None at its end, Refusal where it is too large."""
    data = await context.read()
    if data is grpc.aio.EOF:
        return None
    if len(data) > min(limits.opening_bytes, CHUNK - 1):
        reason = f"{len(data)} bytes came before the session was open; at most {limits.opening_bytes} may come there"
        raise Refusal(Code.RESOURCE_EXHAUSTED, reason)
    assert isinstance(data, bytes)
    return data


class Welcome:
    """Opens sessions, and brings devices back to theirs, on the network thread."""

    def __init__(
        self,
        edge: int,
        rounds: ServedRounds,
        strangers: Strangers,
        journal: Path,
        thread: NetworkThread,
        limits: Limits,
        meter: EdgeMeter,
        steps: StepsDoor | None,
    ):
        self.edge = edge
        self.rounds = rounds
        self.strangers = strangers
        self.limits = limits
        self.meter = meter
        self.steps = steps
        self._journal = Journal(journal)
        self._thread = thread

    async def admit(self, context: Context) -> tuple[WireSession, SessionStream]:
        """Admit a stranger; returns its session and new stream. Refusal, TrustError or WireError where it gets none."""
        async with self.strangers.place(context.peer()):
            opening, admission, claims = await self._proven(context)
        if (opening.up, opening.down) != (admission.up, admission.down):
            raise Refusal(
                Code.FAILED_PRECONDITION,
                f"this round's codecs are {admission.up} and {admission.down}; the device has others",
            )
        session = self._session(admission, claims, opening)
        if session is None and admission.other_edges is not None:
            session = await admission.other_edges.fetch(claims, opening)
        if session is None:
            session = await self._new_session(admission, claims, opening)
        if admission.over and not session.finished:  # the round ended meanwhile
            raise session.refusal or admission.without(claims.device)
        if not session.joined:
            session.joined = True
            admission.inbox.put(Joined(device=claims.device))
        stream = session.attach(opening.served, waits=opening.steps and self.steps is not None)
        opened = pb.Opened(
            secret=session.secret,
            received=session.received,
            queue=self.limits.queue,
            max_bytes=admission.most(self.limits.max_message_bytes),
        )
        if self.steps is not None and stream.undecided:
            self.steps.offer(session, stream, opened)
        await context.write(frame(pb.ToDevice(opened=opened)))
        return session, stream

    async def _proven(self, context: Context) -> tuple[pb.Open, Admission, Claims]:
        """Read a stranger's opening, and let it prove that it holds the key that its token names."""
        opening = (await self._read(context, "open")).open
        # Not where half of the places at the door are taken: a device that is refused for that comes back.
        wait = len(self.strangers) <= self.limits.handshakes // 2
        admission = await self.rounds.of_token(opening.token, wait)
        claims = admission.check(opening.token)
        if fingerprint(opening.public_key) != claims.fingerprint:
            raise TrustError(f"the token of device {claims.device} is for another key")
        try:
            check_versions(opening.protocol, opening.version, f"device {claims.device}", f"edge {self.edge}")
        except VersionError as error:
            raise Refusal(Code.FAILED_PRECONDITION, str(error)) from None
        nonce = secrets.token_bytes(32)
        challenge = pb.Challenge(nonce=nonce, protocol=PROTOCOL, version=__version__)
        await context.write(frame(pb.ToDevice(challenge=challenge)))
        proof = (await self._read(context, "proof")).proof
        check_proof(proof.signature, opening.public_key, nonce, self.edge, opening.token)
        return opening, admission, claims

    async def _read(self, context: Context, kind: str) -> pb.ToEdge:
        data = await first_words(context, self.limits)
        if data is None:
            raise WireError(f"the stream ended where the {kind} of a session is next")
        message, rest = read_frame(data, pb.ToEdge)
        if message.WhichOneof("body") != kind or rest:
            raise WireError(f"the {kind} of a session is next; something else came")
        return message

    def _session(self, admission: Admission, claims: Claims, opening: pb.Open) -> WireSession | None:
        """Find the session that a device comes back to; None where it has none yet."""
        session = admission.sessions.get(claims.device)
        if session is None:
            if opening.secret:
                raise Refusal(Code.FAILED_PRECONDITION, f"edge {self.edge} has no session of device {claims.device}")
            return None
        if session.moved and not opening.secret:
            return None  # it comes back, and another edge has its session
        if session.refusal is not None:
            raise session.refusal
        # A device that never received the secret, since the connection broke, has proven its key and may come in: at
        # once where no stream is open, else as soon as the edge has seen that the broken one is.
        if session.same(opening.secret) or (session.unheard and not opening.secret and not session.connected):
            return session
        code = Code.UNAVAILABLE if session.unheard and not opening.secret else Code.ALREADY_EXISTS
        raise Refusal(code, f"device {claims.device} has a session at edge {self.edge} already")

    async def _new_session(self, admission: Admission, claims: Claims, opening: pb.Open) -> WireSession:
        session = WireSession(claims, opening.token, admission.inbox, self._thread, self.limits.queue, self.meter)
        session.most = admission.most(self.limits.max_message_bytes)
        before = admission.sessions.get(claims.device)
        admission.sessions[claims.device] = session  # before any await, so that there is one per device
        if before is not None and before.moved:
            return session
        loop = asyncio.get_running_loop()
        entered = asyncio.ensure_future(loop.run_in_executor(None, self._journal.enter, claims))
        # Whatever becomes of this stream meanwhile, the journal decides about the session.
        entered.add_done_callback(partial(self._entered, admission, session))
        await asyncio.shield(entered)
        if session.refusal is not None:
            raise session.refusal
        return session

    def _entered(self, admission: Admission, session: WireSession, entered: "asyncio.Future[bool]") -> None:
        device = session.claims.device
        if entered.cancelled() or entered.exception() is not None:
            if admission.sessions.get(device) is session:
                del admission.sessions[device]  # the journal has no entry: it may come again
        elif not entered.result():
            session.refusal = Refusal(
                Code.FAILED_PRECONDITION,
                f"the token of device {device} was used before, at a session that edge {self.edge} lost",
            )
