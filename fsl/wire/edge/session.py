"""One device's session at its edge, for the network thread; it outlives the streams that carry it."""

import asyncio
import hmac
import queue
import secrets
import time
from collections import deque
from dataclasses import dataclass

import grpc

from fsl.errors import TrustError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.heads import read_frame
from fsl.quoting import one_line
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.loop import NetworkThread
from fsl.wire.options import Limits
from fsl.wire.tokens import Claims


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of ours
    """Ends a stream with a gRPC status code and a reason, which the other end receives."""

    def __init__(self, code: grpc.StatusCode, reason: str):
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A device has a session."""

    device: int


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A device sent a step: the message's head, and the tensors' bytes, not yet decoded."""

    device: int
    upload: pb.Upload
    data: memoryview


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A device has uploaded its last step: its closing message, and the tensors' bytes behind it."""

    device: int
    close: pb.Close
    data: memoryview


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A device will not go on here; `reason` says why, `to` is the edge where it begins its round again, if any."""

    device: int
    reason: str
    to: int | None = None


Event = Joined | Uploaded | Finished | Gone
Inbox = queue.SimpleQueue  # of events, from the network thread to the computing thread


class SessionStream:
    """One connection of a session: the frames to send over it, and how it ends."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.ended: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()

    def end(self, refusal: Refusal | None) -> None:
        """End it after the queued frames; `refusal`: with this status."""
        if not self.ended.done():
            self.ended.set_result(refusal)
            self.frames.put_nowait(None)


class WireSession:
    """One device's session. Only `send`, `finish`, `move` and `refuse` are for the computing thread."""

    def __init__(self, claims: Claims, token: bytes, inbox: Inbox, thread: NetworkThread, queue: int, meter: EdgeMeter):
        self.claims = claims
        self.token = token
        self.secret = secrets.token_bytes(32)
        self.received = 0  # uploads
        self.refusal: Refusal | None = None  # the reason, where it ended without success
        self.closing = False  # the device has uploaded its last step
        self.joined = False  # the round has received `Joined`
        self.finished = False  # the edge has sent its last frame
        self.moved = False  # it is at another edge now
        self.most = Limits.max_message_bytes  # bytes of the largest frame that it takes
        self._taken = 0  # uploads that came over this session's own streams
        self._left_to: int | None = None
        self._inbox = inbox
        self._thread = thread
        self._room = asyncio.Semaphore(queue)  # free places for uploads that the round has not read
        self._stream: SessionStream | None = None
        self._kept: deque[tuple[int, bytes]] = deque()  # frames by the upload that led to them
        self._queue = queue
        self._meter = meter
        self._arrivals: deque[float] = deque()  # arrival times of the unserved uploads
        self.delivered = asyncio.Event()  # the last frame is on its way to the device

    # For the computing thread.

    def send(self, frames: list[bytes], upload: int, done: bool = True) -> None:
        """Send the frames that this upload led to (-1: none did); `done` frees its place in the queue."""
        self._thread.call(self._send, frames, upload, done)

    def refuse(self, code: grpc.StatusCode, reason: str) -> None:
        """End the session without success."""
        self._thread.call(self.end, Refusal(code, reason))

    def finish(self, frames: list[bytes]) -> None:
        """Send the last frames."""
        self._thread.call(self._finish, frames)

    def move(self, data: bytes) -> None:
        """Tell the device that another edge has its session now; `data` is the frame that says so."""
        self.moved = True
        self.finish([data])

    # On the network thread.

    def take_over(self, received: int, frames: list[bytes]) -> None:
        """Go on with a session that another edge handed over, whose device has not received these frames."""
        self.received = received
        self._kept.extend((received - 1, frame) for frame in frames)

    @property
    def connected(self) -> bool:
        """Returns whether a stream carries the session now."""
        return self._stream is not None

    def same(self, secret: bytes) -> bool:
        """Returns whether `secret` is the session's, so that the device may come back to it."""
        return hmac.compare_digest(secret, self.secret)

    def attach(self, served: int) -> SessionStream:
        """Carry the session over a new stream, and send again what the device has not received."""
        if self._stream is not None:
            self._stream.end(Refusal(grpc.StatusCode.ABORTED, "the device came back over another connection"))
        self._stream = SessionStream()
        for index, frame in self._kept:
            if index >= served or index < 0:
                self._stream.frames.put_nowait(frame)
        if self.finished:
            self._stream.end(None)
        return self._stream

    @property
    def unheard(self) -> bool:
        """Returns whether the device may never have received the secret: it sent no frame, and no stream is open."""
        return self._stream is None and self._taken == 0 and not self.closing

    def is_on(self, stream: SessionStream) -> bool:
        """Returns whether this stream carries the session, and not a later one."""
        return self._stream is stream

    def detach(self, stream: SessionStream) -> None:
        """Let go of a stream that has ended; the device may come back."""
        if self.is_on(stream):
            self._stream = None

    async def take(self, data: bytes) -> None:
        """Take a frame; waits while too many uploads are unread, which makes the sender wait."""
        message, rest = read_frame(data, pb.ToEdge)
        kind = message.WhichOneof("body")
        device = self.claims.device
        if self.closing and kind == "close":
            return  # a device that came back repeats it
        if self.closing and kind != "leave":
            raise WireError(f"device {device} had closed its session")
        if kind == "upload":
            self._check(message.upload)
            self.received += 1
            self._taken += 1
            self._arrivals.append(time.perf_counter())
            self._meter.uploaded(len(data))
            await self._room.acquire()
            self._inbox.put(Uploaded(device=device, upload=message.upload, data=rest))
        elif kind == "close":
            self.closing = True
            self._inbox.put(Finished(device=device, close=message.close, data=rest))
        elif kind == "leave":
            self._left_to = message.leave.to - 1 if message.leave.to else None
            raise Refusal(grpc.StatusCode.ABORTED, f"the device left: {_short(message.leave.reason)}")
        else:
            raise WireError(f"a {kind or 'message of no kind'} has no place in a session that is open")

    def lose(self, refusal: Refusal) -> None:
        """End the session without success, because of what came over the network."""
        if self.refusal is None:
            self.refusal = refusal
            self.moved = self._left_to is not None
            self._inbox.put(Gone(device=self.claims.device, reason=refusal.reason, to=self._left_to))

    def _check(self, upload: pb.Upload) -> None:
        claims = self.claims
        if (upload.device, upload.round) != (claims.device, claims.round):
            raise TrustError(
                f"an upload of device {upload.device} in round {upload.round} came in the session of device "
                f"{claims.device} in round {claims.round}"
            )
        if upload.step != self.received:
            raise WireError(f"upload {upload.step} came where {self.received} is next")
        if self.received >= claims.steps:
            raise WireError(f"the token allows {claims.steps} uploads, and one more came")

    def _send(self, frames: list[bytes], upload: int, done: bool) -> None:
        if done:
            self._room.release()
            self._meter.served(time.perf_counter() - self._arrivals.popleft())
        # A device has received all before its newest uploads, of which no more than `queue` are unserved.
        while self._kept and self._kept[0][0] < self.received - self._queue:
            self._kept.popleft()
        for frame in frames:
            self._kept.append((upload, frame))
            if self._stream is not None:
                self._stream.frames.put_nowait(frame)

    def _finish(self, frames: list[bytes]) -> None:
        self.finished = True
        for frame in frames:
            self._kept.append((self.received, frame))
            if self._stream is not None:
                self._stream.frames.put_nowait(frame)
        if self._stream is not None:
            self._stream.end(None)

    def end(self, refusal: Refusal) -> None:
        """End the session without success, by this edge's decision."""
        self.refusal = self.refusal or refusal
        if self._stream is not None:
            self._stream.end(refusal)


def _short(text: str) -> str:
    return one_line(text, 200)
