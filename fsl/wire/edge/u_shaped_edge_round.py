"""Serves a round of a U-shaped split: each step's loss is computed by the tails of devices, which have the labels.

A device sends two messages a step, numbered one after another: 2s has the smashed data of step s, 2s + 1 the gradient
at the back's outputs. So sessions, connections that break and limits are those of any round. An edge says that both are
served once it has done the step: until then a device keeps them, and can repeat them to another edge.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from fsl.codecs.codec import Payload
from fsl.errors import WireError
from fsl.messages.frames import check_finite, read_upload
from fsl.messages.step_messages import StepMessage
from fsl.messages.steps import TailAnswer, TailCall, Upload, UploadPacket
from fsl.wire.edge.attendance import Attendance
from fsl.wire.edge.edge_round import EdgeRound
from fsl.wire.edge.session_events import Uploaded


class UShapedEdgeRound(EdgeRound):
    """An edge's round whose trainer asks the devices' tails in the middle of a step.

    While it waits for their answers, other devices' messages are taken and wait for their turn. A device that is lost
    then leaves the trainer after the step.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.server.tails = self._ask_tails
        self._called: dict[int, TailCall] = {}
        self._answered: dict[int, TailAnswer] = {}
        self._stepping = False
        self._gone_meanwhile: list[int] = []  # devices that were lost while the trainer was in a step
        self._missed: dict[int, Attendance] = {}  # heard while it was

    def _tailed(self, device: int) -> bool:
        """Whether the device has a tail, and so sends two messages a step."""
        return True

    def _number(self, device: int, step: int) -> int:
        return 2 * step + 1 if self._tailed(device) else step

    def _step_of(self, number: int) -> int:
        return number // 2

    def _upload(self, attendance: Attendance, event: Uploaded) -> None:
        if event.upload.step % 2 == 0 or not self._tailed(event.device):
            super()._upload(attendance, event)
            return
        try:
            self._take_answer(attendance, event)
        except Exception as error:  # also a codec's own error on bytes that no encoder made
            self._lose_invalid(event.device, error)

    def _packet(self, event: Uploaded) -> UploadPacket:
        smashed, targets, factors = read_upload(event.upload, event.data)
        if targets is not None or factors is not None:
            raise WireError("an upload with labels, which stay on devices in this round")
        return UploadPacket(device=event.device, step=event.upload.step // 2, smashed=smashed, targets=None)

    def _take_answer(self, attendance: Attendance, event: Uploaded) -> None:
        device, step = event.device, event.upload.step // 2
        call = self._called.get(device)
        if call is None or call.step != step:
            raise WireError(f"a tail answered for step {step}, of which it was not asked")
        answer = self._answer(event)
        del self._called[device]
        attendance.due = None
        self._answered[device] = answer

    def _answer(self, event: Uploaded) -> TailAnswer:
        """Read what a tail answers; WireError for what is no answer."""
        gradient, told, factors = read_upload(event.upload, event.data)
        if factors is not None:
            raise WireError("a tail's answer with clip factors, which nobody asks it for")
        if told is None or told.dtype is not torch.float64 or told.shape != (2,) or not float(told[1]) >= 0:
            raise WireError("a tail's answer has no mean loss and weight")
        check_finite("the weight of a loss", told[1:])
        return TailAnswer(device=event.device, step=event.upload.step // 2, gradient=gradient, told=told)

    def _ask_tails(self, calls: Sequence[TailCall]) -> Sequence[TailAnswer]:
        """Send devices the back's outputs, and wait for what their tails say; a device that is lost says nothing."""
        for call in calls:
            attendance = self.all[call.device]
            if attendance.here:
                self._ask_tail(attendance, call)
        while any(self.all[device].here for device in self._called):
            self._hear()
        self._called.clear()
        found = [self._answered.get(call.device) or _nothing(call) for call in calls]
        self._answered.clear()
        return found

    def _ask_tail(self, attendance: Attendance, call: TailCall) -> None:
        """Send a device the back's outputs of its present step."""
        number = attendance.served = 2 * call.step
        message = StepMessage(
            kind="reply",
            device=call.device,
            round=self.admission.round,
            step=number,
            mark=number,
            payload=call.outputs,
        )
        self.meter.replied(message.size)
        self._called[call.device] = call
        attendance.due = time.monotonic() + self.patience.straggler
        self._send(attendance, [message], number)

    def _hear(self) -> None:
        """Take the next event in the middle of a step."""
        self._take_meanwhile(self._next_event())
        if self.deadline is not None and (phase := self.deadline.passed()):
            self._close_round(last=phase == "last" or self.order == "as they come")

    def _take_meanwhile(self, event: Any) -> None:
        """Take an event, and remember whose it is: what it makes possible is done after the step."""
        self._heard = None
        self._take(event)
        if self._heard is not None:
            self._missed[self._heard.device] = self._heard

    def _step(self, uploads: Sequence[Upload]) -> None:
        self._stepping = True
        try:
            super()._step(uploads)
        finally:
            self._stepping = False
            for device in self._gone_meanwhile:
                self.server.lose(device)
            self._gone_meanwhile.clear()

    def _abandon(self, device: int) -> None:
        if self._stepping:
            self._gone_meanwhile.append(device)
        else:
            super()._abandon(device)

    def _advance(self) -> None:
        super()._advance()
        while self._missed and self.order == "as they come":
            _, self._heard = self._missed.popitem()
            super()._advance()
        self._missed.clear()


def _nothing(call: TailCall) -> TailAnswer:
    """Returns the answer of a device that is lost: one that no step can be made of."""
    told = torch.tensor([float("nan"), 0.0], dtype=torch.float64)
    return TailAnswer(device=call.device, step=call.step, gradient=Payload("", ()), told=told)
