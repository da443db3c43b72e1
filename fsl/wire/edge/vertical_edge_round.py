"""Serves a round of vertical split learning: all parties upload what they make of the same people, step by step."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc
import torch

from fsl.errors import WireError
from fsl.messages.frames import read_upload
from fsl.messages.steps import NOTHING, Upload, UploadPacket
from fsl.round.fused_steps import FusedSteps
from fsl.round.vertical_cohort import NOBODY
from fsl.wire.edge.attendance import Attendance, EdgeOutcome
from fsl.wire.edge.edge_round import served_frame
from fsl.wire.edge.session_events import Finished, Uploaded
from fsl.wire.edge.u_shaped_edge_round import UShapedEdgeRound

Code = grpc.StatusCode


class VerticalEdgeRound(UShapedEdgeRound):
    """An edge's round whose uploads of a step are of the same people, and are fused.

    A party that a step is without says so by an upload of nothing. Where a tail has the labels, its party alone sends
    two messages a step. `all_or_none`: without one party nobody goes on, as where the model is scored.
    """

    def __init__(self, *arguments: Any, steps: FusedSteps, all_or_none: bool = False, **named: Any):
        super().__init__(*arguments, **named)
        self.steps = steps
        self.all_or_none = all_or_none

    def counts(self) -> Counter[str]:
        """Returns the counts of the round, with the steps that parties missed."""
        return super().counts() + self.steps.counts

    def _tailed(self, device: int) -> bool:
        return self.steps.tails and device == self.steps.holder

    def _serve(self) -> EdgeOutcome:
        parties = self.steps.worker.parties
        missing = [number for number in range(len(parties)) if number not in self.all and self._needed(number)]
        for device in self.all if missing else ():
            reason = f"{self._without(missing[0])}: party '{parties[missing[0]]}' takes no part in this round"
            super()._lose(device, Code.FAILED_PRECONDITION, reason)
        outcome = super()._serve()
        closed = self.steps.told(outcome.closed, by_all=True)
        return EdgeOutcome(closed, outcome.lost, outcome.failed, skipped=self.steps.batches.skipped)

    def _packet(self, event: Uploaded) -> UploadPacket:
        device = event.device
        smashed, targets, factors = read_upload(event.upload, event.data)
        shares = device == self.steps.holder and not self.steps.tails
        if factors is not None or (targets is not None and not shares):
            raise WireError("an upload with labels or factors, which this party does not send")
        step = event.upload.step // 2 if self._tailed(device) else event.upload.step
        if smashed == NOTHING and self._needed(device):
            raise WireError(f"an upload of nothing, and {self._without(device)}")
        if smashed != NOTHING and targets is None and shares:
            raise WireError("an upload without labels, which this party has")
        return UploadPacket(device=device, step=step, smashed=smashed, targets=targets)

    def _receive(self, attendance: Attendance, packet: UploadPacket) -> Upload:
        """Take an upload, of as many people as its step has; one of nothing has no rows."""
        if not packet.absent:
            upload = super()._receive(attendance, packet)
            self.steps.check(packet.step, len(upload.smashed))
            return upload
        self.steps.check(packet.step, None)
        self.server.session(packet.device).step += 1
        nothing = torch.empty(0)
        return Upload(packet.device, packet.step, nothing, nothing)

    def _finish(self, attendance: Attendance, event: Finished) -> None:
        """Take a party's close; one that comes before its last step is no honest party's."""
        steps, done = len(self.steps.batches.rows), 0
        if attendance.opened:
            done = self.server.session(event.device).step
        if done < steps:
            self._lose(event.device, Code.INVALID_ARGUMENT, f"it closed after {done} steps; the round has {steps}")
            return
        super()._finish(attendance, event)

    def _step(self, uploads: Sequence[Upload]) -> None:
        if not uploads:
            super()._step(uploads)
            return
        here = [upload for upload in uploads if len(upload.smashed)]
        for upload in uploads:
            if not len(upload.smashed):
                attendance = self.all[upload.device]
                attendance.served = self._number(upload.device, upload.step)
                self._await(attendance)
                self._send(attendance, [served_frame(attendance.served + 1)], attendance.served)
        self.steps.count({upload.device for upload in here})
        if not here:
            return
        super()._step(self.steps.labelled(here))
        self.steps.note(here[0].step, [upload.device for upload in here if not self.all[upload.device].settled])

    def _lose(self, device: int, code: Code, reason: str) -> None:
        """Lose a party for the rest of the round; where it was needed, as for its labels, all are lost."""
        super()._lose(device, code, reason)
        if self._needed(device):
            for attendance in self._live():
                super()._lose(attendance.device, Code.ABORTED, f"{self._without(device)}: {reason}")

    def _needed(self, device: int) -> bool:
        return self.all_or_none or device == self.steps.holder

    def _without(self, device: int) -> str:
        return NOBODY if device == self.steps.holder else "scores are of all parties together"
