"""Answers other edges on behalf of a round, and asks them, on the network thread.

It passes what concerns sessions to the computing thread as an event, with a future for the answer.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc

from fsl.errors import FslError, TrustError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.quoting import one_line
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.edge_events import Asked, Delivered, Handed, Placed, Sent, Silent
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.session import WireSession
from fsl.wire.edge.signed_calls import Peer, PeerLines, RoundPlace
from fsl.wire.options import Limits, Patience
from fsl.wire.tokens import Claims

log = logging.getLogger(__name__)
Code = grpc.StatusCode
_TRANSIENT = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED})
_FINAL = frozenset({Code.FAILED_PRECONDITION, Code.PERMISSION_DENIED, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED})
_LONG_POLL = 5.0  # seconds after which an edge answers a watch though nothing is new
_AGAIN = 0.3  # seconds between two attempts to reach an edge
_TRIES = 5  # attempts at a call that was corrupted on its way, before it counts as refused
_AT_ONCE = 4.0  # seconds for an edge to hand over a session whose device waits at another's door


class OtherEdges:
    """Answers other edges' calls about one round, and makes this edge's calls to them."""

    def __init__(
        self,
        admission: Admission,
        lines: PeerLines,
        peers: Sequence[Peer],
        limits: Limits,
        patience: Patience,
        keep: Callable[[int, bytes], None],
    ):
        self.admission = admission
        self.here = RoundPlace(admission.run, admission.round, admission.fence, admission.edge)
        self.peers: Mapping[int, Peer] = {peer.edge: peer for peer in peers}
        self.limits = limits
        self.patience = patience
        self._lines = lines
        self._keep = keep  # writes a device's optimizer state to disk
        self._places = pb.Places(version=1)
        self._news = asyncio.Event()
        self._resting = False
        self._copies: dict[int, tuple[bytes, int]] = {}  # newest copies of other edges' sessions
        self._at_work: set[asyncio.Task[None]] = set()

    def watch(self) -> None:
        """Begin to ask the other edges where devices are."""
        for peer in self.peers.values():
            self._begin(self._watch(peer))

    def rest(self) -> None:
        """Stop asking, and let open calls end. (A cancelled call would be an error in the other edge's log.)"""
        self._resting = True
        for event in self.admission.inbox.left():  # the round reads it no longer, and other edges wait for answers
            if isinstance(event, Handed | Asked):
                event.done(Refusal(Code.FAILED_PRECONDITION, f"the round is over at edge {self.here.edge}"))

    def post(self, here: Sequence[int], settled: Sequence[int], over: bool) -> None:
        """Publish to the other edges which devices are `here`, which are `settled`, and whether the round is `over`."""
        self._places = pb.Places(version=self._places.version + 1, here=here, settled=settled, over=over)
        self._news.set()
        self._news = asyncio.Event()

    # Questions of other edges.

    async def answer(self, said: pb.ToPeer, data: bytes) -> tuple[Mapping[str, Any], bytes]:
        """Returns the answer's body, and the data behind it; raises Refusal or WireError where it has no answer."""
        kind = said.WhichOneof("body")
        if kind == "watch":
            return {"places": await self._newer(said.watch.known)}, b""
        if kind == "hand":
            claims = self._granted(said.hand.device, said.hand.token, self.here.edge)
            await self._adopt(claims, said.hand.token, data, said.hand.moved_bytes)
            return {"taken": pb.Hand(device=claims.device)}, b""
        if kind == "ask":
            claims = self._granted(said.ask.device, said.ask.token, said.source)
            snapshot, moved = await self._told(lambda done: Asked(claims.device, said.source, done))
            return {"hand": pb.Hand(device=claims.device, token=said.ask.token, moved_bytes=moved)}, snapshot
        if kind == "copy":
            claims = self._granted(said.copy.device, said.copy.token, self.here.edge)
            self._copies[claims.device] = (data, said.copy.moved_bytes)
            return {"taken": pb.Hand(device=claims.device)}, b""
        if kind == "keep":
            # Not on the computing thread, whose round may be over.
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(None, self._keep, said.keep.device, data)
            except (FslError, KeyError, OSError) as error:
                raise Refusal(Code.INVALID_ARGUMENT, f"device {said.keep.device}: {error}") from None
            return {"taken": pb.Hand(device=said.keep.device)}, b""
        raise WireError(f"a {kind or 'message of no kind'} is nothing that edges ask each other")

    async def _newer(self, known: int) -> pb.Places:
        if self._places.version <= known:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _LONG_POLL)
        return self._places

    def _granted(self, device: int, token: bytes, edge: int) -> Claims:
        """Returns the claims of a device's token; raises Refusal where it does not allow a session at `edge`."""
        claims = self.admission.check(token, edge)
        if claims.device != device:
            raise TrustError(f"the token is of device {claims.device}, and the session of device {device}")
        return claims

    async def _adopt(self, claims: Claims, token: bytes, data: bytes, moved_bytes: int) -> WireSession:
        session = await self._told(lambda done: Handed(claims.device, claims, token, data, moved_bytes, done))
        assert isinstance(session, WireSession)
        return session

    async def _told(self, event: Callable[[Callable[[Any], None]], Any]) -> Any:
        """Put an event into the round's inbox and wait for the computing thread's answer."""
        if self._resting:
            raise Refusal(Code.FAILED_PRECONDITION, f"the round is over at edge {self.here.edge}")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def done(result: Any) -> None:
            if not future.done():
                future.set_result(result)

        def tell(result: Any) -> None:
            loop.call_soon_threadsafe(done, result)

        self.admission.inbox.put(event(tell))
        try:
            result = await asyncio.wait_for(future, self.patience.straggler)
        except TimeoutError:
            raise Refusal(Code.UNAVAILABLE, f"edge {self.here.edge} is at work and does not answer") from None
        if isinstance(result, Refusal):
            raise result
        return result

    # Questions of this edge.

    async def fetch(self, claims: Claims, opening: pb.Open) -> WireSession | None:
        """Fetch the session of a device that comes from another edge; None where no edge has it."""
        peer = self.peers.get(opening.left - 1) if opening.left else None
        if peer is None:
            return None
        body = {"ask": pb.Ask(device=claims.device, token=opening.token)}
        try:
            said, data = await self._lines.call(self.here, peer, body, b"", _AT_ONCE)
            return await self._adopt(claims, opening.token, data, said.hand.moved_bytes)
        except (grpc.aio.AioRpcError, TrustError, WireError, Refusal) as error:
            copy = self._copies.pop(claims.device, None)
            log.warning(
                "edge %d, round %d: the session of device %d cannot be had from edge %d (%s); it %s",
                *(self.here.edge, self.here.round, claims.device, peer.edge, _why(error)),
                "begins again" if copy is None else "goes on from its last copy",
            )
        if copy is None:
            return None
        try:
            return await self._adopt(claims, opening.token, *copy)
        except (WireError, Refusal) as error:
            log.warning("edge %d: the copy is of no use: %s", self.here.edge, _why(error))
            return None

    def copy(self, device: int, edge: int, token: bytes, data: bytes, moved_bytes: int) -> None:
        """Leave a copy of a session with another edge; where it gets lost, the next copy replaces it."""
        body = {"copy": pb.Hand(device=device, token=token, moved_bytes=moved_bytes)}

        async def send() -> None:
            if (failure := await self._insist(edge, body, data)) is not None:
                log.warning("edge %d: no copy of device %d's session: %s", self.here.edge, device, failure)

        self._begin(send())

    def deliver(self, device: int, edge: int, token: bytes, data: bytes, moved_bytes: int) -> None:
        """Hand a session over to another edge; a `Delivered` event reports the outcome."""
        self._begin(self._deliver(device, edge, token, data, moved_bytes))

    async def _deliver(self, device: int, edge: int, token: bytes, data: bytes, moved_bytes: int) -> None:
        body = {"hand": pb.Hand(device=device, token=token, moved_bytes=moved_bytes)}
        self.admission.inbox.put(Delivered(device, edge, await self._insist(edge, body, data)))

    def keep(self, device: int, edge: int, data: bytes) -> None:
        """Send a device's optimizer state to its home edge; a `Sent` event reports the outcome."""

        async def send() -> None:
            failure = await self._insist(edge, {"keep": pb.Keep(device=device)}, data)
            self.admission.inbox.put(Sent(device, failure))

        self._begin(send())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _insist(self, edge: int, body: Mapping[str, Any], data: bytes) -> str | None:
        """Repeat a call to another edge until it answers; returns None, or the reason why it did not."""
        peer = self.peers.get(edge)
        if peer is None:
            return f"edge {edge} has no part in this round"
        if len(data) > self.limits.max_message_bytes:
            return f"{len(data)} bytes are above max-message-bytes={self.limits.max_message_bytes}"
        deadline, changed = time.monotonic() + self.patience.straggler / 2, 0
        while True:
            try:
                await self._lines.call(self.here, peer, body, data, max(0.1, deadline - time.monotonic()))
                return None
            except (grpc.aio.AioRpcError, TrustError, WireError) as error:
                code = error.code() if isinstance(error, grpc.aio.AioRpcError) else Code.DATA_LOSS
                if code not in _TRANSIENT:  # corrupted on its way, or a final refusal
                    changed += 1
                if code in _FINAL or changed >= _TRIES or time.monotonic() > deadline:
                    return f"edge {edge}: {_why(error)}"
            except Exception as error:  # the round waits for the outcome
                return f"edge {edge}: {type(error).__name__}: {error}"
            await asyncio.sleep(_AGAIN)

    async def _watch(self, peer: Peer) -> None:
        known, patience = 0, self.patience.join
        since: float | None = time.monotonic()  # the last sign of life; None once its silence was reported
        while not self._resting:
            try:
                said, _ = await self._lines.call(
                    self.here, peer, {"watch": pb.Watch(known=known)}, b"", _LONG_POLL + 10
                )
            except (grpc.aio.AioRpcError, TrustError, WireError):
                if since is not None and time.monotonic() > since + patience:
                    self.admission.inbox.put(Silent(peer.edge))
                    since = None
                await asyncio.sleep(_AGAIN)
                continue
            patience, since = self.patience.straggler, time.monotonic()
            places = said.places
            if places.version > known:
                known = places.version
                self.admission.inbox.put(
                    Placed(peer.edge, frozenset(places.here), frozenset(places.settled), places.over)
                )
            if places.over:
                return


def _why(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return one_line(error.details() or error.code().name)
    return str(error.reason if isinstance(error, Refusal) else error)
