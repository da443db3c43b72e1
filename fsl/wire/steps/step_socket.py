"""One end of a lean stream: frames and steps over a socket, read and written by the thread that computes."""

import math
import select
import socket
import ssl
import time
from collections import deque
from typing import Any, Protocol

from fsl.errors import WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import Arrived
from fsl.messages.heads import read_frame
from fsl.messages.step_messages import FRAME, HEAD, KEPT, MAX_KEPT, STEP, Description, Descriptions, Outgoing
from fsl.wire.frame_stream import TooLarge
from fsl.wire.steps.mailbox import READ, WRITE, Mailbox

_AT_ONCE = 16  # messages that it takes before others have their turn
_PATIENCE = 0.02  # seconds for a reader to take more of a message that does not leave at once
_PIECE = 1 << 20  # bytes of memory for what is to come, where its size is somebody's word alone
_VECTORS = 64  # parts that leave by one call
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
ToHere = type[pb.ToEdge] | type[pb.ToDevice]
Data = memoryview | Arrived


class StepEar(Protocol):
    """Hears what comes over a stream, on the computing thread."""

    def hear(self, stream: "StepSocket", message: pb.ToEdge | pb.ToDevice, data: Data, size: int) -> bool:
        """Take a message of a frame of `size` bytes; returns False where no more is to be read for now.

        TooLarge, WireError or another error of fsl for what has no place in the session.
        """

    def broke(self, stream: "StepSocket", error: Exception) -> None:
        """Hear that the stream has ended: by an error of `hear` or by what cannot be read, or by the other end."""


class StepSocket:
    """A connected, non-blocking socket, plain or TLS. `most`: bytes of the largest frame that may come.

    `backlog`: where more bytes wait to be sent, nothing is read until the other end has read; only one end may have it,
    or both would wait. `queue` may be called by any thread before `begin`; all else is for the computing thread.
    """

    def __init__(
        self,
        sock: socket.socket,
        heard: ToHere,
        most: int,
        ear: StepEar,
        box: "Mailbox[Any]",
        backlog: float = math.inf,
    ):
        self.closed = False
        self._sock = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._heard = heard
        self._most = most
        self._ear = ear
        self._box = box
        self._said = Descriptions()
        self._kept: list[Description] = []
        self._backlog = backlog
        self._out: deque[memoryview] = deque()
        self._waiting = 0  # bytes in it
        self._paused = False
        self._begun = False
        self._more = False
        self._head = bytearray(HEAD.size)
        self._pieces: list[bytearray] = []  # of a frame that is coming
        self._left = 0  # bytes of it after the present piece
        self._kind = FRAME
        self._arriving: tuple[Arrived, pb.ToEdge | pb.ToDevice, int] | None = None  # a step that is coming
        self._views: deque[memoryview] = deque([memoryview(self._head)])  # memory that is filled next
        self._at_head = True

    def fileno(self) -> int:
        """Returns the socket's number."""
        return self._sock.fileno()

    def interest(self) -> int:
        """Returns what it waits for."""
        return (READ if self._reads else 0) | (WRITE if self._out else 0)

    @property
    def more(self) -> bool:
        """Returns whether something has come that no selector sees: TLS has decrypted it already."""
        return self._more and self._reads

    @property
    def _reads(self) -> bool:
        return not self._paused and self._waiting <= self._backlog

    @property
    def unsent(self) -> bool:
        """Returns whether something waits to be sent."""
        return bool(self._out) and not self.closed

    def queue(self, message: Outgoing) -> None:
        """Have a message leave before all others."""
        views = [memoryview(part) for part in self._said.parts(message)]
        self._out.extend(views)
        self._waiting += sum(map(len, views))

    def begin(self) -> None:
        """Begin to read and write."""
        self._begun = True
        self._more = self._tls is not None and self._tls.pending() > 0
        self.ready()

    def write(self, message: Outgoing) -> None:
        """Send a message, as much of it as the other end takes; the rest while the thread waits."""
        if not self.closed:
            late = bool(self._out)  # its reader is slow
            self.queue(message)
            if self._begun:
                self._flush(0.0 if late else _PATIENCE)
                self._box.watch(self)

    def resume(self) -> None:
        """Read on, after `hear` said to stop."""
        if self._paused:
            self._paused = False
            self._more = self._tls is not None and self._tls.pending() > 0
            self._box.watch(self)

    def ready(self) -> None:
        """Read and write what can be."""
        if self._reads:
            self._read()
        self.push()

    def push(self) -> None:
        """Write what can be, without waiting."""
        if self._out and not self.closed:
            self._flush()
        self._box.watch(self)

    def close(self) -> None:
        """End the stream, without a word."""
        if not self.closed:
            self.closed = True
            self._box.watch(self)
            self._sock.close()
            self._out.clear()
            self._waiting = 0

    def _broke(self, error: Exception) -> None:
        if not self.closed:
            self.close()
            self._ear.broke(self, error)

    # Writing.

    def _flush(self, patience: float = 0.0) -> None:
        until: float | None = None
        while self._out:
            try:
                self._sent(self._tls.send(self._out[0]) if self._tls is not None else self._send_some())
            except (BlockingIOError, ssl.SSLWantWriteError):
                # A reader at work is quicker than another turn of the thread would be; a slow one holds nobody up.
                now = time.monotonic()
                until = until or now + patience
                if now >= until or not _writable(self._sock, until - now):
                    return
            except ssl.SSLWantReadError:
                return
            except (OSError, ValueError) as error:
                self._broke(error)
                return

    def _send_some(self) -> int:
        if len(self._out) == 1:
            return self._sock.send(self._out[0])
        return self._sock.sendmsg([self._out[i] for i in range(min(len(self._out), _VECTORS))])

    def _sent(self, count: int) -> None:
        self._waiting -= count
        while self._out and count >= len(self._out[0]):
            count -= len(self._out.popleft())
        if count:
            self._out[0] = self._out[0][count:]

    # Reading.

    def _read(self) -> None:
        taken, self._more = 0, False
        try:
            while not self.closed:
                count = self._sock.recv_into(self._views[0])
                if not count:
                    raise ConnectionError("the other end closed the stream of steps")
                self._views[0] = self._views[0][count:]
                if len(self._views[0]):
                    continue
                self._views.popleft()
                if self._filled():
                    taken += 1
                    self._more = self._tls is not None and not self.closed and self._tls.pending() > 0
                    if self._paused or taken >= _AT_ONCE or not self._more:
                        return
        except _LATER:
            return
        except Exception as error:  # of the socket, or of whoever hears
            self._broke(error)

    def _filled(self) -> bool:
        """Go on after a piece of memory is full; returns whether a message was complete."""
        if self._at_head:
            self._begin_body(*HEAD.unpack(self._head))
        elif self._left:
            self._next_piece()
        while not self._views:
            if self._left:
                self._next_piece()
                continue
            self._complete()
            return True
        return False

    def _begin_body(self, kind: int, number: int, step: int, mark: int) -> None:
        self._at_head, self._kind = False, kind
        if kind == STEP:
            if number >= len(self._kept):
                raise WireError(f"a step is of description {number}; {len(self._kept)} are known")
            kept = self._kept[number]
            arrived, views = kept.blank()
            self._arriving = arrived, kept.named(step, mark), kept.size
            self._views.extend(views)
        elif kind in (FRAME, KEPT) and not number and not mark:
            if step > self._most:
                raise TooLarge(self._most)
            self._left = step
        else:
            raise WireError(f"what came on a stream of steps begins no message (kind {kind})")

    def _next_piece(self) -> None:
        piece = bytearray(min(self._left, _PIECE))
        self._left -= len(piece)
        self._pieces.append(piece)
        self._views.append(memoryview(piece))

    def _complete(self) -> None:
        self._views.append(memoryview(self._head))
        self._at_head = True
        if self._arriving is not None:
            arrived, named, size = self._arriving
            self._arriving = None
            arrived.check()
            self._hear(named, arrived, size)
            return
        data = bytes(self._pieces[0]) if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        message, rest = self._framed(data)
        if self._kind == KEPT:
            self._keep(message, rest, len(data))
        self._hear(message, rest, len(data))

    def _framed(self, data: bytes) -> tuple[pb.ToEdge | pb.ToDevice, memoryview]:
        return read_frame(data, pb.ToEdge) if self._heard is pb.ToEdge else read_frame(data, pb.ToDevice)

    def _keep(self, message: pb.ToEdge | pb.ToDevice, rest: memoryview, size: int) -> None:
        body = message.upload if isinstance(message, pb.ToEdge) else message.reply
        if message.WhichOneof("body") not in ("upload", "reply") or len(self._kept) >= MAX_KEPT:
            raise WireError(f"only uploads and replies are described, of at most {MAX_KEPT} kinds")
        self._kept.append(Description.of(body, rest, size))

    def _hear(self, message: pb.ToEdge | pb.ToDevice, data: Data, size: int) -> None:
        if not self._ear.hear(self, message, data, size):
            self._paused = True


def _writable(sock: socket.socket, seconds: float) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(1000 * seconds))
