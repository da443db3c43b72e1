"""Where a round at an edge answers other edges, and asks them; all of it on the network thread.

What concerns sessions goes to the thread that computes as an event, with a future for the answer.
"""

import asyncio
import logging
import queue
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from fsl.errors import FslError, TrustError, WireError
from fsl.quoting import one_line
from fsl.wire import messages_pb2 as pb
from fsl.wire.admission import Admission
from fsl.wire.options import Limits, Patience
from fsl.wire.peers import Peer, PeerLines, Place
from fsl.wire.session import Refusal, WireSession
from fsl.wire.tokens import Claims

log = logging.getLogger(__name__)
Code = grpc.StatusCode
# How a call to another edge ended: it may get through yet; it is refused for good. All else: its words were changed.
_TRANSIENT = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED})
_FINAL = frozenset({Code.FAILED_PRECONDITION, Code.PERMISSION_DENIED, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED})
_LONG_POLL = 5.0  # seconds after which a watch is answered though nothing is new
_AGAIN = 0.3  # seconds between two attempts to reach an edge
_TRIES = 5  # to say what was changed on its way, before it counts as refused
_AT_ONCE = 4.0  # seconds for an edge to hand over a session whose device waits at another's door


@dataclass(frozen=True)
class Handed:
    """A session came from another edge."""

    device: int
    claims: Claims
    token: bytes
    data: bytes
    moved_bytes: int
    done: Callable[["WireSession | Refusal"], None]


@dataclass(frozen=True)
class Asked:
    """Another edge asks for a session, whose device has come there."""

    device: int
    edge: int
    done: Callable[["tuple[bytes, int] | Refusal"], None]  # the snapshot, and the bytes of all so far


@dataclass(frozen=True)
class Delivered:
    """A session that was to go to another edge is there, or it is not and why."""

    device: int
    edge: int
    failure: str | None


@dataclass(frozen=True)
class Placed:
    """Another edge says where devices are."""

    edge: int
    here: frozenset[int]
    settled: frozenset[int]
    over: bool


@dataclass(frozen=True)
class Silent:
    """Another edge cannot be reached any more."""

    edge: int


@dataclass(frozen=True)
class Sent:
    """The optimizer's state of a device is at its home edge, or it is not and why."""

    device: int
    failure: str | None


class RoundDesk:
    """Other edges' calls about one round, and this edge's calls to them."""

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
        self.here = Place(admission.run, admission.round, admission.fence, admission.edge)
        self.peers: Mapping[int, Peer] = {peer.edge: peer for peer in peers}
        self.limits = limits
        self.patience = patience
        self._lines = lines
        self._keep = keep  # a device's optimizer state, on the disk
        self._places = pb.Places(version=1)
        self._news = asyncio.Event()
        self._resting = False
        self._copies: dict[int, tuple[bytes, int]] = {}  # of other edges' sessions, the newest
        self._at_work: set[asyncio.Task[None]] = set()

    def watch(self) -> None:
        """Begin to ask the other edges where devices are."""
        for peer in self.peers.values():
            self._begin(self._watch(peer))

    def rest(self) -> None:
        """Ask no more; what is asked is answered soon. (A call that is cancelled is an error in the other's log.)"""
        self._resting = True
        with suppress(queue.Empty):  # nobody looks at it any more, and other edges wait for their answers
            while True:
                event = self.admission.inbox.get_nowait()
                if isinstance(event, Handed | Asked):
                    event.done(Refusal(Code.FAILED_PRECONDITION, f"the round is over at edge {self.here.edge}"))

    def post(self, here: Sequence[int], settled: Sequence[int], over: bool) -> None:
        """Where devices are, for the other edges."""
        self._places = pb.Places(version=self._places.version + 1, here=here, settled=settled, over=over)
        self._news.set()
        self._news = asyncio.Event()

    # What other edges ask.

    async def answer(self, said: pb.ToPeer, data: bytes) -> tuple[Mapping[str, Any], bytes]:
        """The answer's body, and what follows it; Refusal or WireError where there is none."""
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
            # Not by the thread that computes, whose round may be over.
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
        """What the device's token allows; a session goes only where it does."""
        claims = self.admission.check(token, edge)
        if claims.device != device:
            raise TrustError(f"the token is of device {claims.device}, and the session of device {device}")
        return claims

    async def _adopt(self, claims: Claims, token: bytes, data: bytes, moved_bytes: int) -> WireSession:
        session = await self._told(lambda done: Handed(claims.device, claims, token, data, moved_bytes, done))
        assert isinstance(session, WireSession)
        return session

    async def _told(self, event: Callable[[Callable[[Any], None]], Any]) -> Any:
        """What the thread that computes makes of an event."""
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

    # What this edge asks.

    async def fetch(self, claims: Claims, opening: pb.Open) -> WireSession | None:
        """The session of a device that comes from another edge; None where nobody has it."""
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
        """Leave a copy of a session with another edge; one that does not get there is replaced by the next."""
        body = {"copy": pb.Hand(device=device, token=token, moved_bytes=moved_bytes)}

        async def send() -> None:
            if (failure := await self._insist(edge, body, data)) is not None:
                log.warning("edge %d: no copy of device %d's session: %s", self.here.edge, device, failure)

        self._begin(send())

    def deliver(self, device: int, edge: int, token: bytes, data: bytes, moved_bytes: int) -> None:
        """Hand a session over to another edge; `Delivered` tells what came of it."""
        self._begin(self._deliver(device, edge, token, data, moved_bytes))

    async def _deliver(self, device: int, edge: int, token: bytes, data: bytes, moved_bytes: int) -> None:
        body = {"hand": pb.Hand(device=device, token=token, moved_bytes=moved_bytes)}
        self.admission.inbox.put(Delivered(device, edge, await self._insist(edge, body, data)))

    def keep(self, device: int, edge: int, data: bytes) -> None:
        """Send a device's optimizer state to its home edge; `Sent` tells what came of it."""

        async def send() -> None:
            failure = await self._insist(edge, {"keep": pb.Keep(device=device)}, data)
            self.admission.inbox.put(Sent(device, failure))

        self._begin(send())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _insist(self, edge: int, body: Mapping[str, Any], data: bytes) -> str | None:
        """Say something to another edge until it has heard; why it has not, or None."""
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
                if code not in _TRANSIENT:
                    changed += 1
                if code in _FINAL or changed >= _TRIES or time.monotonic() > deadline:
                    return f"edge {edge}: {_why(error)}"
            except Exception as error:  # the round waits for what comes of this
                return f"edge {edge}: {type(error).__name__}: {error}"
            await asyncio.sleep(_AGAIN)

    async def _watch(self, peer: Peer) -> None:
        known, patience = 0, self.patience.join
        since: float | None = time.monotonic()  # it was heard of; None: that it is silent has been said
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
