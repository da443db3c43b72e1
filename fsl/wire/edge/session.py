"""One device's session at its edge; it outlives the connections that carry it."""

import asyncio
import hmac
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence

import grpc

from fsl.errors import TrustError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import Arrived
from fsl.messages.heads import read_frame
from fsl.messages.step_messages import Outgoing
from fsl.quoting import one_line
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.edge.refusal import Refusal, refusal_of
from fsl.wire.edge.session_events import Finished, Gone, Inbox, Uploaded
from fsl.wire.edge.session_stream import SessionStream
from fsl.wire.loop import NetworkThread
from fsl.wire.options import Limits
from fsl.wire.steps.step_socket import StepSocket
from fsl.wire.tokens import Claims

log = logging.getLogger(__name__)


class WireSession:
    """One device's session. The network thread attaches connections to it, and the computing thread answers.

    What comes over the door's gRPC stream is taken on the network thread, what comes over a lean stream on the
    computing one; a lock keeps them apart, and nothing of a connection counts once another has taken its place.
    """

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
        self._taken = 0  # uploads that came over this session's own connections
        self._left_to: int | None = None
        self._inbox = inbox
        self._thread = thread
        self._freed = asyncio.Event()  # a place for an upload that the round has not read
        self._stream: SessionStream | None = None
        self._kept: deque[tuple[int, Outgoing]] = deque()  # messages by the upload that led to them
        self._queue = queue
        self._meter = meter
        self._arrivals: deque[float] = deque()  # arrival times of the unserved uploads
        self._lock = threading.RLock()
        self.delivered = asyncio.Event()  # the last frame, or the refusal, is on its way to the device

    # For the computing thread.

    def send(self, messages: Sequence[Outgoing], upload: int, done: bool = True) -> None:
        """Send the messages that this upload led to (-1: none did); `done` frees its place in the queue."""
        with self._lock:
            stream = self._stream
            if done:
                self._meter.served(time.perf_counter() - self._arrivals.popleft())
            # A device has received all before its newest uploads, of which no more than `queue` are unserved.
            while self._kept and self._kept[0][0] < self.received - self._queue:
                self._kept.popleft()
            self._kept.extend((upload, message) for message in messages)
            if stream is not None:
                for message in messages:
                    stream.put(message)
        if done and stream is not None and stream.steps is not None:
            stream.steps.resume()
        elif done:
            self._thread.call(self._freed.set)

    def refuse(self, code: grpc.StatusCode, reason: str) -> None:
        """End the session without success."""
        self._thread.call(self.end, Refusal(code, reason))

    def finish(self, frames: Sequence[Outgoing]) -> None:
        """Send the last frames."""
        with self._lock:
            self.finished = True
            self._kept.extend((self.received, frame) for frame in frames)
            if (stream := self._stream) is not None:
                for frame in frames:
                    stream.put(frame)
                self._thread.call(stream.end, None)

    def move(self, data: bytes) -> None:
        """Tell the device that another edge has its session now; `data` is the frame that says so."""
        self.moved = True
        self.finish([data])

    def hear(self, steps: StepSocket, message: pb.ToEdge | pb.ToDevice, data: memoryview | Arrived, size: int) -> bool:
        """Take a message of a lean stream; returns False where the device has to wait before it sends more."""
        assert isinstance(message, pb.ToEdge)
        with self._lock:
            if self._stream is None or self._stream.steps is not steps:
                return False  # another connection has taken its place, and brings this again
            self._take(message, data, size)
            return len(self._arrivals) < self._queue

    def broke(self, steps: StepSocket, error: Exception) -> None:
        """Hear that a lean stream has ended; the device comes back, unless it sent what it may not."""
        refusal = refusal_of(error)
        if refusal is None and not isinstance(error, OSError):  # no fault of a connection: it would come again
            log.error("the stream of steps of device %d failed", self.claims.device, exc_info=error)
            refusal = Refusal(grpc.StatusCode.INTERNAL, f"its edge failed to read what it sent: {type(error).__name__}")
        with self._lock:
            stream = self._stream
            # A device whose lean stream broke may still say on the other one that it leaves.
            if refusal is None or stream is None or stream.steps is not steps:
                return
            self.lose(refusal)
        self._thread.call(stream.end, refusal)

    # On the network thread.

    def take_over(self, received: int, frames: Sequence[Outgoing]) -> None:
        """Go on with a session that another edge handed over, whose device has not received these frames."""
        self.received = received
        self._kept.extend((received - 1, frame) for frame in frames)

    @property
    def box(self) -> Inbox:
        """Returns the mailbox of the thread that computes."""
        return self._inbox

    @property
    def connected(self) -> bool:
        """Returns whether a stream carries the session now."""
        return self._stream is not None

    def same(self, secret: bytes) -> bool:
        """Returns whether `secret` is the session's, so that the device may come back to it."""
        return hmac.compare_digest(secret, self.secret)

    def attach(self, served: int, waits: bool = False) -> SessionStream:
        """Carry the session over a new connection, and send again what the device has not received.

        `waits`: the device may open a lean stream beside it.
        """
        with self._lock:
            if self._stream is not None:
                self._stream.end(Refusal(grpc.StatusCode.ABORTED, "the device came back over another connection"))
                self._part(self._stream)
            stream = self._stream = SessionStream(self._thread.call, waits and not self.finished)
            for index, message in self._kept:
                if index >= served or index < 0:
                    stream.put(message)
            if self.finished:
                # After the frames, which reach the queue by a call.
                self._thread.call(stream.end, None)
            return stream

    def carry(self, stream: SessionStream, steps: StepSocket) -> None:
        """Have a lean stream carry what `stream` would; closes it where another connection has come meanwhile."""
        with self._lock:
            if self._stream is not stream or not stream.undecided:
                steps.close()
                return
            stream.carry(steps)
        if not self._inbox.call(steps.begin):
            steps.close()

    @property
    def unheard(self) -> bool:
        """Returns whether the device may never have received the secret: nothing that it sent shows that it has."""
        return self._taken == 0 and not self.closing and (self._stream is None or self._stream.steps is None)

    def is_on(self, stream: SessionStream) -> bool:
        """Returns whether this stream carries the session, and not a later one."""
        return self._stream is stream

    def detach(self, stream: SessionStream) -> None:
        """Let go of a stream that has ended; the device may come back."""
        with self._lock:
            if self._stream is not stream:
                return
            self._stream = None
            stream.ended.cancel()  # its ticket is of no use any more
            if not self.finished:
                self._part(stream)

    def _part(self, stream: SessionStream) -> None:
        if stream.steps is not None:
            self._inbox.call(stream.steps.close)

    async def take(self, stream: SessionStream, data: bytes) -> None:
        """Take a frame of the door's stream; waits while too many uploads are unread, which makes the sender wait."""
        message, rest = read_frame(data, pb.ToEdge)
        kind = message.WhichOneof("body")
        if kind == "stay" and stream.undecided:
            stream.stay()
            return
        if kind != "leave" and (stream.undecided or stream.steps is not None):
            raise WireError(f"a {kind or 'message of no kind'} came beside the stream of steps")
        while kind == "upload" and len(self._arrivals) >= self._queue:
            self._freed.clear()
            await self._freed.wait()
        with self._lock:
            if self._stream is stream:  # else another one has taken its place, and brings this again
                self._take(message, rest, len(data))

    def _take(self, message: pb.ToEdge, data: memoryview | Arrived, size: int) -> None:
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
            self._meter.uploaded(size)
            self._inbox.put(Uploaded(device=device, upload=message.upload, data=data))
        elif kind == "close" and isinstance(data, memoryview):
            self.closing = True
            self._inbox.put(Finished(device=device, close=message.close, data=data))
        elif kind == "leave":
            self._left_to = message.leave.to - 1 if message.leave.to else None
            raise Refusal(grpc.StatusCode.ABORTED, f"the device left: {_short(message.leave.reason)}")
        else:
            raise WireError(f"a {kind or 'message of no kind'} has no place in a session that is open")

    def lose(self, refusal: Refusal) -> None:
        """End the session without success, because of what came over the network."""
        with self._lock:
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

    def end(self, refusal: Refusal) -> None:
        """End the session without success, by this edge's decision."""
        self.refusal = self.refusal or refusal
        if self._stream is not None:
            self._stream.end(refusal)


def _short(text: str) -> str:
    return one_line(text, 200)
