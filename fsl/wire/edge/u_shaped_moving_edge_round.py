"""Serves a round of a U-shaped split at an edge whose devices move: as planned between steps, and by themselves.

A device that comes to another edge while its own one waits for its tail takes its session along as it was before the
step, and sends what it sent of the step again: smashed data, and the tail's answer if it has given one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from fsl.messages.steps import TailAnswer, TailCall, Upload
from fsl.round.sessions import SessionSnapshot
from fsl.trainers import Snapshot
from fsl.wire.edge.attendance import Attendance
from fsl.wire.edge.edge_events import Asked, Handed
from fsl.wire.edge.moving_edge_round import MovingEdgeRound
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.session_events import Finished, Uploaded
from fsl.wire.edge.u_shaped_edge_round import UShapedEdgeRound

Code = grpc.StatusCode


class UShapedMovingEdgeRound(UShapedEdgeRound, MovingEdgeRound):
    """A `MovingEdgeRound` whose trainer asks the devices' tails in the middle of a step.

    Whatever needs another device's back waits for the step's end meanwhile, since backs take turns in one module. The
    edge copies the backs of a step's devices before it: a forward pass changes buffers.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._backs: Mapping[int, Snapshot] = {}  # of the present step's devices, as they were before it
        self._put_off: list[Any] = []  # events, until the step's end
        self._first: dict[int, int] = {}  # by device that came in the middle of its round, its first step here
        self._early: dict[int, TailAnswer] = {}  # came before the outputs: another edge had sent them

    def _step(self, uploads: Sequence[Upload]) -> None:
        self._backs = {upload.device: self.server.trainer.snapshot(upload.device) for upload in uploads}
        try:
            super()._step(uploads)
        except Exception:
            for event in self._put_off:
                if isinstance(event, Handed | Asked):
                    event.done(Refusal(Code.INTERNAL, f"edge {self.server.edge} failed"))
            raise
        finally:
            self._backs = {}
            put_off, self._put_off = self._put_off, []
        for event in put_off:
            if isinstance(event, Uploaded | Finished) and self.all[event.device].here:
                self._open(self.all[event.device])
            self._take_meanwhile(event)

    def _take(self, event: Any) -> None:
        if self._stepping and self._waits(event):
            self._put_off.append(event)
        else:
            super()._take(event)

    def _waits(self, event: Any) -> bool:
        """Whether an event has to wait for the end of the step that is made."""
        match event:
            case Handed():
                return True
            case Asked():
                return event.device not in self._called
            case Uploaded() | Finished():  # it joined in the middle of the step, and its session is not open yet
                attendance = self.all[event.device]
                return attendance.here and attendance.joined and not attendance.opened
        return False

    def _handed(self, event: Handed) -> None:
        attendance = self.all.get(event.device)
        away = attendance is not None and attendance.away
        super()._handed(event)
        if away and self.all[event.device].here:
            self._first[event.device] = self.server.session(event.device).step

    def _asked(self, event: Asked) -> tuple[bytes, int] | Refusal:
        device, attendance = event.device, self.all.get(event.device)
        if attendance is None or not (attendance.here and attendance.opened):
            return super()._asked(event)
        called = device in self._called
        if not (called or attendance.uploads) or len(self.server.session(device).waiting) != 1:
            return super()._asked(event)
        session = self.server.withdraw(device)
        back = self._backs[device] if called else self.server.trainer.snapshot(device)
        return self._give(device, event.edge, self._packed(device, SessionSnapshot(session, back)))

    def _mark_away(self, device: int, edge: int) -> None:
        for known in (self._called, self._first, self._early):
            known.pop(device, None)
        super()._mark_away(device, edge)

    def _take_answer(self, attendance: Attendance, event: Uploaded) -> None:
        device, step = event.device, self._step_of(event.upload.step)
        repeats = self.server.trainer.divisible and step == self._first.get(device, 0)  # which another edge had asked
        asked = device in self._called or not attendance.opened
        if asked or not repeats or step not in self.server.session(device).waiting:
            super()._take_answer(attendance, event)
        else:
            self._early[device] = self._answer(event)

    def _ask_tail(self, attendance: Attendance, call: TailCall) -> None:
        answer = self._early.pop(call.device, None)
        if answer is None or answer.step != call.step:
            super()._ask_tail(attendance, call)
            return
        attendance.served = 2 * call.step
        self._answered[call.device] = answer
        self._send(attendance, [], attendance.served)
