"""One device's stream at an edge that serves a model: reads its questions, and writes what they lead to."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fsl.errors import WireError
from fsl.inference.serving.desk import Desk
from fsl.inference.serving.edge_counts import EdgeCounts
from fsl.inference.serving.question import LONGEST_SECONDS, WaitingQuestion
from fsl.inference.serving.served_codecs import CutWriter
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import record, unanswered_record
from fsl.quoting import one_line
from fsl.wire.frame_stream import CHUNK, Writes, send

_UNREAD = 16 << 20  # bytes of answers that wait to be sent, for which the edge reads on


@dataclass(frozen=True, kw_only=True)
class StreamTerms:
    """What an edge and a device have agreed on when a stream began.

    `points`: names, by the place that questions tell. `writer`: gives what encodes at a point by a codec, by their
    places; WireError where that cannot be. `rows` of a question at most, and `unanswered` questions. `expires`: when
    the device's token does, in seconds since 1970.
    """

    name: str
    points: Sequence[str]
    writer: Callable[[int, int], CutWriter]
    rows: int
    unanswered: int
    expires: float = math.inf


class AskedStream:
    """Takes one device's records, and keeps what waits for it; all of it on the network thread.

    It takes no more questions than `unanswered` whose answers have not left, and none while 16 MiB of answers wait: a
    device that does not read fills nothing but its own connection.
    """

    def __init__(
        self, terms: StreamTerms, desk: Desk, counts: EdgeCounts, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self.gone = False
        self.writing_since: float | None = None  # by the clock, where a write waits for the device
        self._terms = terms
        self._desk = desk
        self._counts = counts
        self._clock = clock
        self._wall = wall
        self._last = -1  # id
        self._open = 1  # questions and probes whose answers have not left, and the greeting
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # in it
        self._changed = asyncio.Event()  # something is to be written
        self._left = asyncio.Event()  # something was written

    @property
    def expired(self) -> bool:
        """Whether the device's token counts no more."""
        return self._wall() >= self._terms.expires

    async def take(self, message: pb.ToServing, data: memoryview) -> None:
        """Take a record when there is room; WireError where it has no place here."""
        while self._open >= self._terms.unanswered or self._bytes > _UNREAD:
            self._left.clear()
            await self._left.wait()
        kind = message.WhichOneof("body")
        self._open += 1
        if kind == "question":
            self._ask(message.question, data)
        elif kind == "probe" and not data:
            said = pb.Echoed(
                number=message.probe.number, queue_seconds=self._desk.waiting_seconds, load=self._desk.load
            )
            self.put(record(pb.FromServing(echoed=said)))
        else:
            raise WireError(f"a {kind or 'message of no kind'} has no place in a stream that is open")

    def _ask(self, message: pb.Question, data: memoryview) -> None:
        if message.id <= self._last:
            raise WireError(f"question {message.id} came after {self._last}; ids grow on a stream")
        self._last = message.id
        now = self._clock()
        try:
            one = self._checked(message, data, now)
        except WireError as error:
            self._counts.ended("misfit")
            self.put(unanswered_record(id=message.id, failing=pb.MISFIT, reason=one_line(str(error))))
            return
        self._desk.put(one)

    def _checked(self, message: pb.Question, data: memoryview, now: float) -> WaitingQuestion:
        if not 1 <= message.rows <= self._terms.rows:
            raise WireError(f"a question has {message.rows} rows; from 1 to {self._terms.rows} may come")
        if not message.seconds >= 0:
            raise WireError(f"a question has {message.seconds} seconds left; it is a number from 0 on")
        return WaitingQuestion(
            asker=self,
            message=message,
            data=data,
            writer=self._terms.writer(message.point, message.codec),
            rows=message.rows,
            size=len(data),
            arrived=now,
            expires=now + min(message.seconds, LONGEST_SECONDS),
        )

    def put(self, data: bytes) -> None:
        """Have a record sent."""
        if not self.gone:
            self._waiting.append(data)
            self._bytes += len(data)
            self._changed.set()

    async def write(self, stream: Writes) -> None:
        """Write what is to be sent, as many records at a time as a message of gRPC carries, until it is cancelled."""
        while True:
            while not self._waiting:
                self._changed.clear()
                await self._changed.wait()
            parts = [self._waiting.popleft()]
            size = len(parts[0])
            while self._waiting and size + len(self._waiting[0]) < CHUNK:
                parts.append(self._waiting.popleft())
                size += len(parts[-1])
            self.writing_since = self._clock()
            await send(stream, parts[0] if len(parts) == 1 else b"".join(parts))
            self.writing_since = None
            self._counts.sent(size)
            self._bytes -= size
            self._open -= len(parts)
            self._left.set()

    def end(self) -> None:
        """Forget what waits for a device that is gone."""
        self.gone = True
        self._waiting.clear()
