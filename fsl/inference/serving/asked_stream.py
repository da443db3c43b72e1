"""One device's stream at an edge that serves a model: reads its questions, and writes what they lead to."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fsl.errors import WireError
from fsl.inference.serving.desk import Desk
from fsl.inference.serving.edge_counts import EdgeCounts
from fsl.inference.serving.outbox import RecordOutbox
from fsl.inference.serving.question import LONGEST_SECONDS, WaitingQuestion
from fsl.inference.serving.question_admission import QuestionAdmission
from fsl.inference.serving.record_socket import RecordSocket
from fsl.inference.serving.served_codecs import CutWriter
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import record, records, unanswered_record
from fsl.quoting import one_line
from fsl.wire.frame_stream import Writes

_UNREAD = 16 << 20  # bytes of answers that wait to be sent, for which the edge reads on


@dataclass(frozen=True, kw_only=True)
class StreamTerms:
    """What an edge and a device have agreed on when a stream began.

    `points`: names, by the place that questions tell. `writer`: gives what encodes at a point by a codec, by their
    places; WireError where that cannot be. `rows` of a question at most, and `unanswered` questions. `expires`: when
    the device's token does, in seconds since 1970. `admission` decides on each question; None takes all.
    """

    name: str
    points: Sequence[str]
    writer: Callable[[int, int], CutWriter]
    rows: int
    unanswered: int
    expires: float = math.inf
    admission: QuestionAdmission | None = None


class AskedStream:
    """Takes one device's records, and keeps what waits for it; all of it on the network thread.

    It takes no more questions than `unanswered` whose answers have not left, and none while 16 MiB of answers wait: a
    device that does not read fills nothing but its own connection. Its records come over the door's gRPC stream, or
    over the lean stream that `carry` gives it.
    """

    def __init__(
        self, terms: StreamTerms, desk: Desk, counts: EdgeCounts, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self.gone = False
        self.broken: asyncio.Future[Exception] = (
            asyncio.get_running_loop().create_future()
        )  # the end of the lean stream
        self._terms = terms
        self._desk = desk
        self._counts = counts
        self._clock = clock
        self._wall = wall
        self._last = -1  # id
        self._open = 0  # questions and probes whose answers have not left
        self._outbox = RecordOutbox(clock, self._sent)
        self._lean: RecordSocket | None = None
        self._left = asyncio.Event()  # something was written

    @property
    def expired(self) -> bool:
        """Whether the device's token counts no more."""
        return self._wall() >= self._terms.expires

    @property
    def is_lean(self) -> bool:
        """Whether a lean stream carries it."""
        return self._lean is not None

    @property
    def has_room(self) -> bool:
        """Whether it takes another question now."""
        return self._open < self._terms.unanswered and self._outbox.unsent <= _UNREAD

    @property
    def stuck_since(self) -> float | None:
        """By the clock, since when the device takes no more of its answers; None where it does."""
        return self._outbox.stuck_since

    async def room(self) -> None:
        """Wait until it takes another question."""
        while not self.has_room:
            self._left.clear()
            await self._left.wait()

    def take(self, message: pb.ToServing, data: memoryview) -> None:
        """Take a record; WireError where it has no place here."""
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
        if (wait := self._refused_seconds(one.key)) > 0:
            self._counts.ended("overloaded")
            reason = f"{self._terms.name} has no turn at {one.key} now"
            said = unanswered_record(id=message.id, failing=pb.OVERLOADED, reason=reason, retry_seconds=wait)
            self.put(said)
            return
        self._desk.put(one)

    def _refused_seconds(self, point: str) -> float:
        admission = self._terms.admission
        return 0.0 if admission is None else admission.refused_seconds(self._terms.name, point)

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
            self._outbox.put(data)

    async def write(self, stream: Writes) -> None:
        """Write what is to be sent over the door's stream, until it is cancelled."""
        await self._outbox.write(stream)

    def _sent(self, size: int, count: int) -> None:
        self._counts.sent(size)
        self._open -= count
        self._left.set()
        self._read_on()

    def end(self) -> None:
        """Forget what waits for a device that is gone."""
        self.gone = True
        self._outbox.clear()
        if self._lean is not None:
            self._lean.close()
        self.broken.cancel()

    # Over a lean stream.

    def carry(self, lean: RecordSocket) -> None:
        """Have a lean stream carry all records from now on."""
        self._lean = lean
        self._outbox.carry(lean)
        lean.begin()

    def heard(self, data: memoryview) -> bool:
        """Take a record of the lean stream; returns whether there is room for another."""
        self._counts.came(len(data))
        for message, rest, _ in records(data, pb.ToServing):
            self.take(message, rest)
        return self.has_room

    def wrote(self) -> None:
        """Hear that the lean stream has taken all that was to be sent."""
        self._outbox.wrote()
        self._read_on()

    def ended(self, error: Exception) -> None:
        """Hear that the lean stream has ended."""
        if not self.broken.done():
            self.broken.set_result(error)

    def _read_on(self) -> None:
        if self._lean is not None and self.has_room:
            self._lean.resume()
