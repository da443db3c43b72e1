"""Serves a round at an edge: collects uploads, decides whose turn it is, and loses devices that are too slow.

It runs on the computing thread; the network thread only puts events into the inbox. A device that dies, stalls or
finishes early holds nobody up for longer than the round's patience.
"""

import logging
import queue
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import grpc

from fsl.errors import FslError, LostError, RunError, StepError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import frame, read_close, read_upload
from fsl.messages.step_messages import Outgoing, StepMessage
from fsl.messages.steps import ReplyPacket, Upload, UploadPacket
from fsl.privacy.reasons import failure_reason
from fsl.round.deadline import Deadline
from fsl.round.edge_server import EdgeServer
from fsl.round.sessions import Session
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.attendance import Attendance, EdgeOutcome
from fsl.wire.edge.expected import Expected
from fsl.wire.edge.lateness import holding_up, late, seconds_to_wait
from fsl.wire.edge.meter import EdgeMeter, Reason
from fsl.wire.edge.session_events import Event, Finished, Gone, Joined, Uploaded
from fsl.wire.options import Patience

log = logging.getLogger(__name__)
Order = Literal["together", "in turn", "as they come"]
Code = grpc.StatusCode
_LAST_WORDS = 3.0  # seconds for the last messages of a round to leave
_REASONS: dict[grpc.StatusCode, Reason] = {
    Code.DEADLINE_EXCEEDED: "straggler",
    Code.INVALID_ARGUMENT: "invalid",
    Code.FAILED_PRECONDITION: "out-of-turn",
    Code.ABORTED: "gone",
    Code.INTERNAL: "edge-failed",
}


class EdgeRound:
    """Serves one cohort's sessions until each is closed or lost.

    The trainer decides how: all together (`lockstep`), each upload as it comes where each device has a back of its own
    (`divisible`) or one back takes them so (`asynchronous`), and otherwise one device after another, in the trainer's
    order.
    """

    def __init__(
        self,
        server: EdgeServer,
        admission: Admission,
        patience: Patience,
        expected: Expected,
        meter: EdgeMeter | None = None,
    ):
        self.server = server
        self.admission = admission
        admission.frame_bytes = expected.frame_bytes
        server.limit = expected.tensor_bytes
        self.patience = patience
        self.expected = expected
        self.meter = meter or EdgeMeter()
        trainer = server.trainer
        self.order: Order = (
            "together"
            if trainer.lockstep
            else "as they come"
            if trainer.divisible or trainer.asynchronous
            else "in turn"
        )
        self.all = {device: Attendance(device) for device in sorted(admission.devices)}
        self.turns = list(trainer.arrange(sorted(self.all)))
        self.began = False  # lockstep: everybody is here, or given up
        self.closed: list[Session] = []
        self.lost: dict[int, str] = {}
        self._heard: Attendance | None = None  # the device of the newest event
        self.deadline: Deadline | None = None  # when the whole round closes
        self.relay = b""  # the sealed front that the next device starts from

    def serve(self) -> EdgeOutcome:
        """Serve until every device is closed or lost."""
        self.meter.round_began(self.admission.round, self.admission.inbox.qsize)
        log.info("%s began with %d devices", self._where, len(self.all), extra=self._about())
        try:
            outcome = self._serve()
        finally:
            self.admission.inbox.flush(_LAST_WORDS)
            self.admission.inbox.close()
        self.meter.round_ended(outcome.failed is not None)
        closed, lost = len(outcome.closed), len(outcome.lost)
        log.info("%s ended: %d devices closed, %d lost", self._where, closed, lost, extra=self._about())
        return outcome

    def counts(self) -> Counter[str]:
        """Returns the counts of the round."""
        return self.server.counts()

    def wake(self) -> None:
        """Have it look at its deadline again; from any thread."""
        self.admission.inbox.put(None)

    def _serve(self) -> EdgeOutcome:
        start = time.monotonic()
        for attendance in self.all.values():
            attendance.due = None if attendance.away else start + self.patience.join
        try:
            while any(not attendance.settled for attendance in self.all.values()):
                self._advance()
                self._take(self._next_event())
                if self.deadline is not None and (phase := self.deadline.passed()):
                    self._close_round(last=phase == "last" or self.order == "as they come")
            return EdgeOutcome(self.closed, self.lost, None)
        except Exception as error:  # every waiting device hears of it, whatever the trainer raised
            cause, where = (error.__cause__ or error, f" ({error})") if isinstance(error, StepError) else (error, "")
            if self.expected.private:
                log.error("%s failed", self._where, exc_info=not isinstance(cause, FslError))
            reason = f"it failed: {failure_reason(cause, self.expected.private)}{where}"
            for attendance in self._live():
                attendance.opened = False  # so that nothing asks the trainer again
                self._lose(attendance.device, Code.INTERNAL, reason)
            return EdgeOutcome([], {**self.lost, **{s.device: reason for s in self.closed}}, reason)

    # Incoming events.

    def _next_event(self) -> Event | None:
        if all(attendance.settled for attendance in self.all.values()):
            return None
        try:
            seconds = seconds_to_wait(self.all.values(), self.patience, self.deadline)
            event: Event | None = self.admission.inbox.get(timeout=seconds)
            return event
        except queue.Empty:
            if self.deadline is not None and self.deadline.left() <= 0:
                return None
            awaited = any(a.due is not None and not a.settled for a in self.all.values())
            if not awaited and not any(a.away and not a.settled for a in self.all.values()):
                raise RunError("no device is waited for, and none has finished") from None
            self._lose_late()
            return None

    def _take(self, event: Event | None) -> None:
        if event is None or (attendance := self.all[event.device]).settled:
            return
        self._heard = attendance
        match event:
            case Joined():
                attendance.joined, attendance.due = True, None
                self.meter.session_opened()
                if self.order == "together" and self.began:
                    self._lose(event.device, Code.FAILED_PRECONDITION, "it came after its cohort had begun")
            case Uploaded():
                self._upload(attendance, event)
            case Finished():
                self._finish(attendance, event)
            case Gone():
                self._lose(event.device, Code.ABORTED, event.reason)

    def _upload(self, attendance: Attendance, event: Uploaded) -> None:
        if not attendance.opened:
            self._lose(event.device, Code.FAILED_PRECONDITION, "it uploaded before it was its turn")
            return
        try:
            upload = self._receive(attendance, self._packet(event))
        except Exception as error:  # also a codec's own error on bytes that no encoder made
            self._lose_invalid(event.device, error)
            return
        attendance.due = None
        attendance.leaving = event.upload.leaving - 1 if event.upload.leaving else attendance.leaving
        attendance.uploads.append(upload)

    def _receive(self, attendance: Attendance, packet: UploadPacket) -> Upload:
        """Decode an upload and check it; WireError for what this round does not take."""
        upload = self.server.receive(packet)
        on_their_way = None if self.server.above is None else packet.targets  # up; the trainer gets no labels
        self.expected.check(upload if on_their_way is None else replace(upload, targets=on_their_way))
        return upload

    def _packet(self, event: Uploaded) -> UploadPacket:
        """Read an upload; WireError for what is none."""
        device, step = event.device, event.upload.step
        smashed, targets, factors = read_upload(event.upload, event.data)
        if targets is None:
            raise WireError("an upload without labels; this edge computes the loss")
        self.expected.check_factors(factors, self.server.rows_of(device, step - 1))
        return UploadPacket(device=device, step=step, smashed=smashed, targets=targets, factors=factors)

    def _number(self, device: int, step: int) -> int:
        """Returns the number of the device's message that a step's last reply answers."""
        return step

    def _step_of(self, number: int) -> int:
        """Returns the step to which a message of this number belongs."""
        return number

    def _abandon(self, device: int) -> None:
        """Drop what a lost device alone had."""
        self.server.lose(device)

    def _finish(self, attendance: Attendance, event: Finished) -> None:
        device = event.device
        if attendance.opened:
            try:
                factors = read_close(event.close, event.data)
                self.expected.check_factors(factors, self.server.rows_of(device, self.server.session(device).step - 1))
                self.expected.check_update(event.close.update if event.close.HasField("update") else None)
            except Exception as error:
                self._lose_invalid(device, error)
                return
            attendance.factors, attendance.update = factors, event.close.update
        attendance.finished, attendance.relay, attendance.due = True, event.close.relay, None

    def _lose_invalid(self, device: int, error: Exception) -> None:
        kind = "" if isinstance(error, WireError) else f"{type(error).__name__}: "
        self._lose(device, Code.INVALID_ARGUMENT, f"{kind}{error}")

    # What the edge does next.

    def _advance(self) -> None:
        """Do all that is possible now: step the trainer, send replies, close sessions."""
        if self.order == "together":
            self._advance_together()
        elif self.order == "in turn":
            self._advance_in_turn()
        elif (attendance := self._heard) is not None and attendance.joined:
            # Nobody waits for anybody, so this event changes nothing for the others.
            if attendance.settled or attendance.away:
                return
            self._open(attendance)
            self._serve_alone(attendance)

    def _advance_together(self) -> None:
        if not self.began:
            if any(not a.joined for a in self._live()):
                return
            self.began = True
            for attendance in self._live():
                self._open(attendance)
        while live := self._live():
            if any(not a.uploads and not a.finished for a in live):
                return
            uploads = [a.uploads.popleft() for a in live if a.uploads]
            self._step(uploads)
            if not uploads:
                for attendance in self._live():
                    self._close(attendance)

    def _advance_in_turn(self) -> None:
        while self.turns:
            attendance = self.all[self.turns[0]]
            if not attendance.settled:
                if not attendance.joined:
                    return
                self._open(attendance)
                self._serve_alone(attendance)
            if not attendance.settled:
                return
            self.turns.pop(0)
            if self.turns and not (after := self.all[self.turns[0]]).joined:
                after.due = max(after.due or 0.0, time.monotonic() + self.patience.straggler)

    def _serve_alone(self, attendance: Attendance) -> None:
        while attendance.uploads:
            self._step([attendance.uploads.popleft()])
        if attendance.finished and not attendance.settled:
            self._step([])
            self._close(attendance)

    def _live(self) -> list[Attendance]:
        return [a for a in self.all.values() if a.here]

    def _open(self, attendance: Attendance) -> None:
        if not attendance.opened:
            session = self.admission.sessions[attendance.device]
            weight = None if self.expected.whole is None else 1.0  # protected devices weigh the same
            self.server.open(attendance.device, session.claims.samples, weight)
            attendance.opened = True
            session.send([frame(pb.ToDevice(begin=pb.Begin(relay=self.relay)))], -1, done=False)
            attendance.due = time.monotonic() + self.patience.straggler

    def _step(self, uploads: Sequence[Upload]) -> None:
        """Step the trainer on these uploads, or flush it where there are none, and send its replies."""
        replies = self.server.answer(uploads) if uploads else self.server.flush()
        for device, reason in self.server.refused().items():
            if self.all[device].here:
                self._lose(device, Code.INVALID_ARGUMENT, reason)
        by_device: dict[int, list[ReplyPacket]] = {}
        for reply in replies:
            by_device.setdefault(reply.device, []).append(reply)
        for upload in uploads:
            attendance = self.all[upload.device]
            if not attendance.here:
                continue
            number = attendance.served = self._number(upload.device, upload.step)
            served = number + 1
            frames = self._frames(by_device.pop(upload.device, []), served) or [served_frame(served)]
            self._await(attendance)
            self._send(attendance, frames, number)
        for device, others in by_device.items():
            if self.all[device].settled:
                continue
            next_step = self.all[device].served + 1
            self.admission.sessions[device].send(self._frames(others, served=0), next_step, done=False)

    def _await(self, attendance: Attendance) -> None:
        """Wait for a device's next message, where none is here yet."""
        if not attendance.uploads and not attendance.finished:
            attendance.due = time.monotonic() + self.patience.straggler

    def _send(self, attendance: Attendance, frames: list[Outgoing], step: int) -> None:
        """Send a device the frames that its upload led to."""
        self.admission.sessions[attendance.device].send(frames, step)

    def _frames(self, replies: Sequence[ReplyPacket], served: int) -> list[Outgoing]:
        last, frames = len(replies) - 1, list[Outgoing]()
        for i, reply in enumerate(replies):
            message = StepMessage(
                kind="reply",
                device=reply.device,
                round=self.admission.round,
                step=self._number(reply.device, reply.step),
                mark=served if i == last else 0,
                payload=reply.gradient,
                norms=reply.norms,
                told=reply.told,
            )
            self.meter.replied(message.size)
            frames.append(message)
        return frames

    def _close(self, attendance: Attendance) -> None:
        device = attendance.device  # settled only at the end, so that it hears of what fails before
        if attendance.factors is not None:
            self.server.apply_clip_factors(device, attendance.factors)
        own = self._shorten(attendance)
        try:
            self.closed.append(self.server.close(device))
        except LostError as error:
            self._lose(device, Code.INVALID_ARGUMENT, error.reason)
            return
        attendance.settled, attendance.due = True, None
        self.relay = attendance.relay or self.relay
        self.admission.sessions[device].finish([frame(pb.ToDevice(closed=pb.Closed(update=own)))])
        self.meter.session_closed()
        log.info("%s: device %d closed", self._where, device, extra=self._about(device))

    def _shorten(self, attendance: Attendance) -> float | None:
        """Clip this edge's part of a device's update; returns the part's squared norm before."""
        if self.expected.whole is None:
            return None
        own = self.server.update_square(attendance.device)
        self.server.shorten(attendance.device, attendance.update + own, self.expected.whole)
        return own

    def _lose_late(self) -> None:
        for device, reason in late(self.all.values(), self.patience):
            self._lose(device, Code.DEADLINE_EXCEEDED, reason)

    def _close_round(self, last: bool) -> None:
        """Close the round at its deadline: lose those whom others wait for, and the second time (`last`) everybody."""
        assert self.deadline is not None
        turn = self.turns[0] if self.order == "in turn" and self.turns else None
        for device in holding_up(self.all.values(), together=self.order == "together", turn=turn, last=last):
            self._lose(device, Code.DEADLINE_EXCEEDED, self.deadline.reason)

    def _lose(self, device: int, code: Code, reason: str) -> None:
        attendance = self.all[device]
        attendance.settled, attendance.due = True, None
        attendance.uploads.clear()
        self.lost[device] = reason
        self.meter.device_lost(_REASONS[code] if attendance.joined else "absent", attendance.joined)
        log.warning("%s: device %d lost: %s", self._where, device, reason, extra=self._about(device))
        if attendance.opened:
            self._abandon(device)
        if (session := self.admission.sessions.get(device)) is not None:
            session.refuse(code, f"{self._who} goes on without device {device}: {reason}")

    @property
    def _who(self) -> str:
        return f"edge {self.server.edge}"

    @property
    def _where(self) -> str:
        return f"{self._who}, round {self.admission.round}"

    def _about(self, device: int | None = None) -> dict[str, object]:
        """Returns the fields of a log line that its reader may search by."""
        place: dict[str, object] = {"run": self.admission.run, "round": self.admission.round, "edge": self.server.edge}
        return place if device is None else place | {"device": device}


def served_frame(uploads: int) -> bytes:
    """Returns the frame that tells a device how many of its uploads the edge has served, where no reply does."""
    return frame(pb.ToDevice(served=pb.Served(served=uploads)))
