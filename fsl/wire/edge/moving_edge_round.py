"""Serves a round at an edge whose devices move: hands sessions over, takes sessions in, and knows who ended elsewhere.

An edge's round ends when every device that could come to it has been closed or lost somewhere: edges tell each other.
"""

import logging
import queue
import time
from collections.abc import Callable
from dataclasses import replace

import grpc

from fsl.errors import CheckpointError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import frame
from fsl.messages.step_messages import Outgoing
from fsl.privacy.reasons import failure_reason
from fsl.round.edge_server import EdgeServer
from fsl.round.handover import Passport, layout_device, pack, reported_size, unpack
from fsl.round.sessions import SessionSnapshot
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.attendance import Attendance, EdgeOutcome
from fsl.wire.edge.edge_events import Asked, Delivered, Handed, Placed, Sent, Silent
from fsl.wire.edge.edge_round import EdgeRound, served_frame
from fsl.wire.edge.expected import Expected
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.edge.other_edges import OtherEdges
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.session import WireSession
from fsl.wire.edge.session_events import Event, Finished, Gone, Joined, Uploaded
from fsl.wire.loop import NetworkThread
from fsl.wire.options import Limits, Patience

log = logging.getLogger(__name__)
Code = grpc.StatusCode


class MovingEdgeRound(EdgeRound):
    """An `EdgeRound` whose devices come and go. `visitors`: devices that begin at another edge, with that edge."""

    def __init__(
        self,
        server: EdgeServer,
        admission: Admission,
        patience: Patience,
        expected: Expected,
        meter: EdgeMeter,
        *,
        thread: NetworkThread,
        other_edges: OtherEdges,
        visitors: dict[int, int],
        trainer: str,
        limits: Limits,
        replicate_every: int,
        kept: Callable[[int], bytes | None],
    ):
        super().__init__(server, admission, patience, expected, meter)
        self.thread = thread
        self.other_edges = other_edges
        self.trainer = trainer
        self.limits = limits
        self.replicate_every = replicate_every
        self.layout = server.trainer.bench.back.layout
        self._at = dict(visitors)  # by device that is away, its edge
        self._home = dict(visitors)
        self._held: dict[int, tuple[list[Outgoing], int]] = {}  # what a device hears if it stays after all
        self._moved_bytes: dict[int, int] = {}
        self._late: dict[int, list[Event]] = {}  # what such a device sent meanwhile
        self._given: dict[int, tuple[int, bytes]] = {}  # by device that left: to which edge, and the session's bytes
        self._over: set[int] = set()  # edges whose round has ended
        self._kept = kept
        for device in visitors:
            self.all[device].away = True
        self._sending: set[int] = set()  # devices whose optimizer state is on its way home
        self._post()

    def _serve(self) -> EdgeOutcome:
        self.thread.call(self.other_edges.watch)
        try:
            outcome = super()._serve()
            self._until_sent()
            return replace(outcome, moved_bytes=self._moved_bytes)
        finally:
            self._post(over=True)
            self.thread.call(self.other_edges.rest)

    def _until_sent(self) -> None:
        while self._sending:
            try:
                self._take(self.admission.inbox.get(timeout=self.patience.straggler))
            except queue.Empty:  # the round counts all the same
                log.error("%s: optimizer states of devices %s are not at home", self._where, sorted(self._sending))
                return

    # Incoming events.

    def _take(self, event: Event | None) -> None:
        self._heard = None
        match event:
            case Handed():
                self._handed(event)
            case Asked():
                self._ask(event)
            case Delivered():
                self._delivered(event)
            case Placed():
                self._placed(event)
            case Silent():
                self._silent(event.edge)
            case Sent():
                self._sent(event)
            case Gone(to=int(edge)) if not self.all[event.device].settled:
                self._away(event.device, edge)
            case Uploaded() | Finished() if self.all[event.device].away:
                if event.device in self._held:  # it may stay; where it goes, it repeats this
                    self._late.setdefault(event.device, []).append(event)
            case Joined() if self.all[event.device].settled:
                reason = f"edge {self.server.edge} goes on without device {event.device}: its round is over"
                self.admission.sessions[event.device].refuse(Code.FAILED_PRECONDITION, reason)
            case Joined():
                self.all[event.device].away = False
                self._at.pop(event.device, None)
                super()._take(event)
                self._post()
            case _:
                super()._take(event)

    def _handed(self, event: Handed) -> None:
        device, attendance = event.device, self.all.get(event.device)
        session = self.admission.sessions.get(device)
        if attendance is None or attendance.settled or not attendance.away:
            if session is not None and not session.moved and session.unheard and not session.connected:
                event.done(session)  # a repeated call: the answer was lost
            else:
                reason = f"device {device} is not expected at edge {self.server.edge}"
                event.done(Refusal(Code.FAILED_PRECONDITION, reason))
            return
        try:
            passport = Passport(self.admission.run, self.admission.round, device, self.trainer)
            snapshot = unpack(event.data, passport, self.layout, layout_device(self.server))
            step, pending = snapshot.session.step, snapshot.session.pending
            served = self._number(device, step - 1) + 1  # messages
            if served > event.claims.steps or snapshot.session.weight != event.claims.samples:
                raise WireError(f"a session came with {step} steps and weight {snapshot.session.weight}")
            self.server.adopt(snapshot)
        except WireError as error:
            event.done(Refusal(Code.INVALID_ARGUMENT, str(error)))
            return
        except Exception as error:  # as in `_ask`
            event.done(
                Refusal(
                    Code.INTERNAL, f"edge {self.server.edge} failed: {failure_reason(error, self.expected.private)}"
                )
            )
            raise
        answered = pending is not None and pending.step == step - 1
        frames = self._frames([pending], served) if pending is not None and answered else [served_frame(served)]
        attendance.away, attendance.joined, attendance.opened = False, True, True
        attendance.finished, attendance.leaving, attendance.served = False, None, served - 1
        attendance.due = time.monotonic() + self.patience.straggler
        self._at.pop(device, None)
        reported = reported_size(event.data, snapshot, passport, self.layout, self.server.reported_batch_size)
        self._moved_bytes[device] = event.moved_bytes + reported
        self.meter.session_opened()
        log.info("%s: device %d came at step %d", self._where, device, step, extra=self._about(device))
        self.thread.call(self._seat, event, served, frames)
        self._post()

    def _seat(self, event: Handed, served: int, frames: list[Outgoing]) -> None:
        """Set up a session for a device that comes, on the network thread."""
        admission = self.admission
        session = WireSession(event.claims, event.token, admission.inbox, self.thread, self.limits.queue, self.meter)
        session.most = admission.most(self.limits.max_message_bytes)
        session.take_over(served, frames)
        session.joined = True
        admission.sessions[event.device] = session
        event.done(session)

    def _ask(self, event: Asked) -> None:
        try:
            event.done(self._asked(event))
        except Exception as error:  # the round fails, but the other edge must not wait
            event.done(
                Refusal(
                    Code.INTERNAL, f"edge {self.server.edge} failed: {failure_reason(error, self.expected.private)}"
                )
            )
            raise

    def _asked(self, event: Asked) -> tuple[bytes, int] | Refusal:
        device, attendance = event.device, self.all.get(event.device)
        given = self._given.get(device)
        if given is not None and given[0] == event.edge and self._at.get(device) == event.edge:
            return given[1], self._moved_bytes.get(device, 0)  # a repeated question: the answer was lost
        if attendance is None or attendance.settled or attendance.away or not attendance.opened:
            return Refusal(Code.NOT_FOUND, f"device {device} is not at edge {self.server.edge}")
        if attendance.uploads or attendance.served < 0 or not self.server.caught_up(device):
            return Refusal(Code.FAILED_PRECONDITION, f"device {device} has done nothing yet, or is not answered")
        return self._give(device, event.edge, self._packed(device))

    def _give(self, device: int, edge: int, data: bytes) -> tuple[bytes, int]:
        """Give another edge the session of a device that has come there by itself."""
        self._given[device] = (edge, data)
        self._left(device, edge)
        return data, self._moved_bytes.get(device, 0)

    def _delivered(self, event: Delivered) -> None:
        device, attendance = event.device, self.all[event.device]
        if device not in self._held:
            return  # another edge has closed or lost it meanwhile
        frames, step = self._held.pop(device)
        if event.failure is None:
            self._late.pop(device, None)
        session = self.admission.sessions[device]
        if event.failure is None:
            session.send([], step)  # tells the device that the upload is served
            self._left(device, event.edge)
            return
        log.warning("%s: device %d stays: %s", self._where, device, event.failure, extra=self._about(device))
        attendance.away, attendance.due = False, time.monotonic() + self.patience.straggler
        super()._send(attendance, frames, step)
        for late in self._late.pop(device, []):
            super()._take(late)
        self._heard = attendance
        self._post()

    def _left(self, device: int, edge: int) -> None:
        """Mark a device whose session another edge has taken over."""
        self._abandon(device)
        self.admission.sessions[device].move(frame(pb.ToDevice(moved=pb.Moved(edge=edge))))
        log.info("%s: device %d left for edge %d", self._where, device, edge, extra=self._about(device))
        self._mark_away(device, edge)

    def _gone(self, device: int, edge: int) -> None:
        """Drop what a device left here: it went to another edge by itself, and ended its round there."""
        log.warning("%s: device %d has settled at edge %d", self._where, device, edge, extra=self._about(device))
        self._held.pop(device, None)
        self._late.pop(device, None)
        self._abandon(device)
        if (session := self.admission.sessions.get(device)) is not None:
            session.move(frame(pb.ToDevice(moved=pb.Moved(edge=edge))))
        self._mark_away(device, edge)
        self.all[device].settled = True

    def _away(self, device: int, edge: int) -> None:
        """Mark a device that begins its round again at another edge."""
        if self.all[device].opened:
            self._abandon(device)
        self._mark_away(device, edge)

    def _mark_away(self, device: int, edge: int) -> None:
        attendance = self.all[device]
        attendance.away, attendance.due, attendance.leaving = True, None, None
        attendance.opened = attendance.joined = attendance.finished = False
        attendance.uploads.clear()
        self._at[device] = edge
        if edge in self._over:
            attendance.settled = True
        self._post()

    def _placed(self, event: Placed) -> None:
        for device in event.here & self.all.keys():
            if self.all[device].away and device not in self._held:
                self._at[device] = event.edge
                self.all[device].due = None
        if event.over:
            self._over.add(event.edge)
        for device in event.settled & self.all.keys():
            # For a device that is here, only `settled` counts: news of its place may be old.
            if not self.all[device].settled and (device in self._held or not self.all[device].away):
                self._gone(device, event.edge)
        for device, attendance in self.all.items():
            gone = device in event.settled or (event.over and self._at.get(device) == event.edge)
            if gone and attendance.away and device not in self._held:
                attendance.settled = True

    def _silent(self, edge: int) -> None:
        log.warning("%s: edge %d cannot be reached", self._where, edge, extra=self._about())
        for device, attendance in self.all.items():
            if attendance.away and device not in self._held and self._at.get(device) == edge:
                attendance.due = time.monotonic() + self.patience.straggler

    def _sent(self, event: Sent) -> None:
        if event.failure is not None:
            log.error(
                "%s: the optimizer state of device %d is not at home: %s", self._where, event.device, event.failure
            )
        self._sending.discard(event.device)
        self._post()

    # What the edge does next.

    def _send(self, attendance: Attendance, frames: list[Outgoing], step: int) -> None:
        device, to = attendance.device, attendance.leaving
        if to is None or attendance.uploads or not self.server.caught_up(device):
            super()._send(attendance, frames, step)
            self._copy(attendance, step)
            return
        self._held[device] = (frames, step)
        attendance.away, attendance.due, attendance.leaving = True, None, None
        token, moved = self.admission.sessions[device].token, self._moved_bytes.get(device, 0)
        self.thread.call(self.other_edges.deliver, device, to, token, self._packed(device), moved)

    def _copy(self, attendance: Attendance, step: int) -> None:
        device, every = attendance.device, self.replicate_every
        if not every or (self._step_of(step) + 1) % every:
            return
        if attendance.uploads or not self.server.caught_up(device):
            return
        session = self.admission.sessions[device]
        others = sorted(set(session.claims.edges) & self.other_edges.peers.keys())
        if others:
            moved = self._moved_bytes.get(device, 0)
            self.thread.call(self.other_edges.copy, device, others[0], session.token, self._packed(device), moved)

    def _packed(self, device: int, snapshot: SessionSnapshot | None = None) -> bytes:
        passport = Passport(self.admission.run, self.admission.round, device, self.trainer)
        return pack(snapshot or self.server.snapshot(device), passport, self.layout)

    def _open(self, attendance: Attendance) -> None:
        try:
            super()._open(attendance)
        except CheckpointError as error:  # its home edge has what it kept from the round before
            self._lose(attendance.device, Code.FAILED_PRECONDITION, str(error))

    def _close(self, attendance: Attendance) -> None:
        super()._close(attendance)
        device = attendance.device
        if device in self._home and (data := self._kept(device)) is not None:
            self._sending.add(device)
            self.thread.call(self.other_edges.keep, device, self._home[device], data)
        self._post()

    def _lose(self, device: int, code: Code, reason: str) -> None:
        super()._lose(device, code, reason)
        self._post()

    def _post(self, over: bool = False) -> None:
        here = [d for d, a in self.all.items() if not a.settled and not a.away]
        settled = [d for d, a in self.all.items() if a.settled and not a.away and d not in self._sending]
        self.thread.call(self.other_edges.post, here, settled, over)
