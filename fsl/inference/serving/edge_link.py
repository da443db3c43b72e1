"""A device's link to one edge: opens a stream, asks over it, hears answers, and comes back when it broke."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import grpc

from fsl.errors import FslError, WireError
from fsl.inference.serving.edge_greeting import REFUSALS, LinkTerms, greet, opened_lean, until_lean_ends
from fsl.inference.serving.link_meter import LinkMeter
from fsl.inference.serving.outbox import RecordOutbox
from fsl.inference.serving.pending import PendingQuestion
from fsl.inference.serving.record_socket import RecordSocket
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import question_record, record, records
from fsl.quoting import one_line
from fsl.wire.connections import Call, Dialler
from fsl.wire.frame_stream import CHUNK, ended, receive
from fsl.wire.options import INFER_METHOD
from fsl.wire.tls import TlsContexts

log = logging.getLogger(__name__)
_PAUSE = (0.1, 2.0)  # seconds before the first next attempt, and at most
_REFUSED = 15.0  # seconds before an edge that refused is asked again


class LinkEar(Protocol):
    """Hears what becomes of questions, on the network thread."""

    def opened(self, link: "EdgeLink") -> None:
        """Hear that a link takes questions now."""

    def broke(self, link: "EdgeLink", questions: Sequence[PendingQuestion], reason: str) -> None:
        """Hear that a link has broken, and which of its questions have no answer."""

    def answered(self, link: "EdgeLink", one: PendingQuestion, said: pb.Answered, data: memoryview, size: int) -> None:
        """Take an answer, a record of `size` bytes; WireError where it cannot be one."""

    def unanswered(self, link: "EdgeLink", one: PendingQuestion, said: pb.Unanswered) -> None:
        """Hear that an edge has no answer."""


class EdgeLink:
    """Asks one edge; all of it on the network thread, but for reading `is_open` and `reason`."""

    def __init__(
        self,
        address: str,
        terms: LinkTerms,
        dialler: Dialler,
        contexts: TlsContexts | None,
        ear: LinkEar,
        meter: LinkMeter,
        clock: Callable[[], float],
    ) -> None:
        self.address = address
        self.is_open = False
        self.reason = "it was not reached yet"  # why it is not open
        self.refused = False  # it was reached, and refused
        self.full_until = 0.0  # by the clock: it was overloaded
        self.meter = meter
        self._terms = terms
        self._dialler = dialler
        self._contexts = contexts
        self._ear = ear
        self._clock = clock
        self._loaded = pb.Loaded()
        self._places: dict[str, int] = {}  # of points
        self._id = 0
        self._asked: dict[int, PendingQuestion] = {}
        self._probes: dict[int, float] = {}
        self._outbox = RecordOutbox(clock, lambda size, count: None)
        self._lean: RecordSocket | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect, and go on until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End the link."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def is_lean(self) -> bool:
        """Whether a lean stream carries its questions."""
        return self._lean is not None

    @property
    def unsent(self) -> int:
        """Bytes that wait to be sent."""
        return self._outbox.unsent

    def takes(self, one: PendingQuestion, now: float) -> bool:
        """Returns whether the edge can be asked this now."""
        return (
            self.is_open
            and now >= self.full_until
            and one.point in self._places
            and one.rows <= self._loaded.max_rows
            and len(self._asked) + len(self._probes) < self._loaded.unanswered
        )

    def ask(self, one: PendingQuestion, now: float) -> bool:
        """Ask a question; returns False where its record is larger than the edge takes."""
        self._id += 1
        data = question_record(
            id=self._id,
            point=self._places[one.point],
            codec=one.codec,
            rows=one.rows,
            seconds=max(0.0, one.until - now),
            values=one.payload,
        )
        if len(data) > self._loaded.max_bytes:
            return False
        one.sent, one.up_bytes = now, len(data)
        self._asked[self._id] = one
        self._outbox.put(data)
        return True

    async def _run(self) -> None:
        pause = _PAUSE[0]
        while True:
            try:
                await self._stream()
                reason = "the edge ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = one_line(error.details() or error.code().name)
                self.refused = error.code() in REFUSALS
            except FslError as error:  # it speaks another version, or says what cannot be
                reason, self.refused = one_line(str(error)), True
            except Exception as error:  # whatever it is, the device goes on without this edge
                reason = one_line(f"{type(error).__name__}: {error}")
            if self.is_open:
                pause = _PAUSE[0]
            if reason != self.reason:
                log.info("edge %s: %s", self.address, reason)
            self._close(reason)
            await asyncio.sleep(_REFUSED if self.refused else pause)
            pause = min(2 * pause, _PAUSE[1])

    def _close(self, reason: str) -> None:
        was_open, self.is_open, self.reason = self.is_open, False, reason
        left = [*self._asked.values()]
        self._asked.clear()
        self._probes.clear()
        self._outbox.clear()
        if was_open:
            self._ear.broke(self, left, reason)

    async def _stream(self) -> None:
        """Ask over one connection until it ends; raises what ended it."""
        channel = self._dialler.channel(self.address)
        tasks: list[asyncio.Task[None]] = []
        call: Call = channel.stream_stream(INFER_METHOD)()
        try:
            self._loaded = await asyncio.wait_for(greet(call, self._terms), self._terms.handshake_seconds)
            self._places = {point: place for place, point in enumerate(self._loaded.points)}
            sock = await opened_lean(self.address, self._loaded, self._contexts) if self._terms.lean else None
            if sock is not None:
                self._lean = RecordSocket(sock, self._terms.most, self)
                self._outbox.carry(self._lean)
                self._broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
            else:
                tasks.append(asyncio.create_task(self._outbox.write(call, min(CHUNK, self._loaded.max_bytes))))
            self.is_open, self.refused, self.reason, self.full_until = True, False, "", 0.0
            tasks.append(asyncio.create_task(self._probe()))
            self._ear.opened(self)
            if self._lean is not None:
                self._lean.begin()
                await until_lean_ends(call, self._broken)
            while (data := await receive(call, self._terms.most)) is not None:
                for message, rest, size in records(data, pb.FromServing):
                    self._hear(message, rest, size)
            raise await ended(call)
        finally:
            if self._lean is not None:
                self._lean.close()
                self._lean = None
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await channel.close()

    # Of the lean stream.

    def heard(self, data: memoryview) -> bool:
        """Take a record."""
        for message, rest, size in records(data, pb.FromServing):
            self._hear(message, rest, size)
        return True

    def wrote(self) -> None:
        """Hear that all that was written is on its way."""

    def ended(self, error: Exception) -> None:
        """Hear that the lean stream has ended."""
        if not self._broken.done():
            self._broken.set_result(error)

    def _hear(self, message: pb.FromServing, data: memoryview, size: int) -> None:
        kind, now = message.WhichOneof("body"), self._clock()
        if kind == "answered":
            said = message.answered
            if not (said.queue_seconds >= 0 and said.compute_seconds >= 0):
                raise WireError("an answer tells seconds that cannot be")
            one = self._of(said.id)
            between = max(0.0, now - one.sent - said.queue_seconds - said.compute_seconds)
            self.meter.crossed(one.up_bytes, size, between, said.queue_seconds)
            self._ear.answered(self, one, said, data, size)
        elif kind == "unanswered" and not data:
            self._ear.unanswered(self, self._of(message.unanswered.id), message.unanswered)
        elif kind == "echoed" and not data and message.echoed.number in self._probes:
            told = message.echoed
            if not (told.queue_seconds >= 0 and 0 <= told.load <= 1):
                raise WireError("an edge tells a load that cannot be")
            self.meter.echoed(now - self._probes.pop(told.number), told.queue_seconds, told.load)
        else:
            raise WireError(f"a {kind or 'message of no kind'} has no place in a stream that is open")

    def _of(self, id: int) -> PendingQuestion:
        one = self._asked.pop(id, None)
        if one is None:
            raise WireError(f"an answer came to question {id}, which is not open")
        return one

    async def _probe(self) -> None:
        """Measure the round trip now and then, one probe at a time."""
        while True:
            if not self._probes:
                self._id += 1
                self._probes[self._id] = self._clock()
                self._outbox.put(record(pb.ToServing(probe=pb.Probe(number=self._id))))
            await asyncio.sleep(self._terms.probe_seconds)
