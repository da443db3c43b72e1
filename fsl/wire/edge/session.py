"""A session at its edge, as the network thread sees it: it outlives the streams that carry it."""

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
from fsl.messages.frames import read_frame
from fsl.quoting import one_line
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.loop import NetworkThread
from fsl.wire.options import Limits
from fsl.wire.tokens import Claims


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of ours
    """Why a stream is ended, as gRPC tells the other end."""

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
    """A device sent a step: the message's head, and the tensors' bytes as they came."""

    device: int
    upload: pb.Upload
    data: memoryview


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A device has nothing more to upload: its last message, and the tensors' bytes behind it."""

    device: int
    close: pb.Close
    data: memoryview


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A device will not go on here, for this reason; `to` is the edge at which it begins its round again, if any."""

    device: int
    reason: str
    to: int | None = None


Event = Joined | Uploaded | Finished | Gone
Inbox = queue.SimpleQueue  # of events; from the network thread to the one that computes


class Stream:
    """One connection of a session: what is to be sent over it, and how it ends."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.ended: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()

    def end(self, refusal: Refusal | None) -> None:
        """End it, after what is to be sent."""
        if not self.ended.done():
            self.ended.set_result(refusal)
            self.frames.put_nowait(None)


class WireSession:
    """One device's session. All but `send`, `finish` and `refuse` belong to the network thread."""

    def __init__(self, claims: Claims, token: bytes, inbox: Inbox, thread: NetworkThread, queue: int, meter: EdgeMeter):
        self.claims = claims
        self.token = token
        self.secret = secrets.token_bytes(32)
        self.received = 0  # uploads
        self.refusal: Refusal | None = None  # why it ended, if it did not end well
        self.closing = False  # the device has nothing more to upload
        self.joined = False  # the round knows of it
        self.finished = False  # all that there is to say has been said
        self.moved = False  # it is at another edge now
        self.most = Limits.max_message_bytes  # bytes of a frame that is taken
        self._taken = 0  # uploads that came over this session's own streams
        self._left_to: int | None = None
        self._inbox = inbox
        self._thread = thread
        self._room = asyncio.Semaphore(queue)  # of uploads that nobody has looked at
        self._stream: Stream | None = None
        self._kept: deque[tuple[int, bytes]] = deque()  # frames by the upload that led to them
        self._queue = queue
        self._meter = meter
        self._arrivals: deque[float] = deque()  # when the uploads came that are unserved
        self.delivered = asyncio.Event()  # the last frame is on its way to the device

    # For the thread that computes.

    def send(self, frames: list[bytes], upload: int, done: bool = True) -> None:
        """Send the frames that this upload led to (-1: none did); `done` if its place in the queue is free again."""
        self._thread.call(self._send, frames, upload, done)

    def refuse(self, code: grpc.StatusCode, reason: str) -> None:
        """End the session without success."""
        self._thread.call(self.end, Refusal(code, reason))

    def finish(self, frames: list[bytes]) -> None:
        """Send the last frames."""
        self._thread.call(self._finish, frames)

    def move(self, data: bytes) -> None:
        """The session is at another edge now; tell the device so."""
        self.moved = True
        self.finish([data])

    # On the network thread.

    def take_over(self, received: int, frames: list[bytes]) -> None:
        """Go on with a session that another edge handed over, whose device has yet to hear these frames."""
        self.received = received
        self._kept.extend((received - 1, frame) for frame in frames)

    @property
    def connected(self) -> bool:
        """Whether a stream carries it now."""
        return self._stream is not None

    def same(self, secret: bytes) -> bool:
        """Whether whoever comes back knows the session's secret."""
        return hmac.compare_digest(secret, self.secret)

    def attach(self, served: int) -> Stream:
        """A new stream carries the session; what the device has not got goes out again."""
        if self._stream is not None:
            self._stream.end(Refusal(grpc.StatusCode.ABORTED, "the device came back over another connection"))
        self._stream = Stream()
        for index, frame in self._kept:
            if index >= served or index < 0:
                self._stream.frames.put_nowait(frame)
        if self.finished:
            self._stream.end(None)
        return self._stream

    @property
    def unheard(self) -> bool:
        """Whether nothing shows that the device knows the secret, and no stream could still bring it."""
        return self._stream is None and self._taken == 0 and not self.closing

    def is_on(self, stream: Stream) -> bool:
        """Whether this stream carries it, and not one that came after."""
        return self._stream is stream

    def detach(self, stream: Stream) -> None:
        """A stream has ended; the device may come back."""
        if self.is_on(stream):
            self._stream = None

    async def take(self, data: bytes) -> None:
        """A frame came. Waits while too many are unanswered, so that the sender does too."""
        message, rest = read_frame(data, pb.ToEdge)
        kind = message.WhichOneof("body")
        device = self.claims.device
        if self.closing and kind == "close":
            return  # a device that came back says it again
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
        """End the session without success, for what came over the network."""
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
        # A device has all that came before its newest uploads, of which no more than `queue` are unserved.
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
        """End the session without success, for what this edge says."""
        self.refusal = self.refusal or refusal
        if self._stream is not None:
            self._stream.end(refusal)


def _short(text: str) -> str:
    return one_line(text, 200)
