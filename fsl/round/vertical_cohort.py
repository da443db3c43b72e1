"""Trains the parties of vertical split learning for one round in one process, in lockstep over the same people."""

import copy
from collections.abc import Mapping, Sequence

from fsl.errors import LostError
from fsl.messages.reports import CohortResult, DeviceReport
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.messages.steps import UploadPacket
from fsl.models.vertical_model import FRONT
from fsl.round.cohort import StepWatcher, result_of, stepping
from fsl.round.edge_side import EdgeSide
from fsl.round.front_device import Device
from fsl.round.fused_steps import FusedSteps, people_of
from fsl.round.party_side import PartySide
from fsl.round.sessions import Session
from fsl.round.unusable import lost_reason
from fsl.round.workload import Worker
from fsl.segments.states import State

NOBODY = "nobody is left who has the labels"


class VerticalCohort:
    """The parties of one round, and the edge that fuses what they send.

    A party that is absent for a step uploads nothing in it; one that is absent for the round is not in `task`.
    """

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]):
        self.plan = plan
        self.worker = worker
        self.sides = {one.device: PartySide(one, plan, worker, states) for one in task.devices}
        self.edge = EdgeSide(task, plan, with_front(worker), states).server
        people = people_of(plan, worker, worker.workload.partition.size(0))
        self.steps = FusedSteps(self.edge, worker, people)
        self.lost: dict[int, str] = {}

    def run(self) -> CohortResult:
        """Train all parties once; a party whose work is unusable is lost, and the others go on without it."""
        with stepping(self.plan) as at:
            devices = self._opened(at)
            self.edge.tails = lambda calls: [devices[call.device].end(call) for call in calls]
            for step in range(len(self.steps.batches.rows)):
                if not devices:
                    break
                self._step(step, devices, at)
            reports = self._closed(devices, at)
        totals, counts = result_of(self.edge, reports, self.lost)
        if not reports:
            return CohortResult(totals={}, reports=(), counts={}, lost=self.lost)
        return CohortResult(totals=totals, reports=tuple(reports), counts=counts + self.steps.counts, lost=self.lost)

    def _opened(self, at: StepWatcher) -> dict[int, Device]:
        devices = {}
        for number, side in sorted(self.sides.items()):
            at(number)
            devices[number] = side.open(number)
            self.edge.open(number, side.samples(number))
        return devices

    def _step(self, step: int, devices: dict[int, Device], at: StepWatcher) -> None:
        """One step: all parties that are there send what their fronts make of these people, and learn from it."""
        packets = []
        for number, device in list(devices.items()):
            if number not in devices:  # lost with the labels
                continue
            at(number, step)
            try:
                packet = device.forward()
            except LostError as error:
                self._lose(number, error.reason, devices)
                continue
            assert packet is not None  # a batch for each step
            if packet.absent:
                self.edge.session(number).step += 1
            else:
                packets.append(packet)
        packets = [packet for packet in packets if packet.device in devices]
        self.steps.count({packet.device for packet in packets}, anybody=bool(devices))
        if packets:
            self._answer(step, packets, devices, at)

    def _answer(self, step: int, packets: Sequence[UploadPacket], devices: dict[int, Device], at: StepWatcher) -> None:
        uploads = [self.edge.receive(packet) for packet in packets]
        replies = self.edge.answer(self.steps.labelled(uploads))
        for number, reason in self.edge.refused().items():
            self._lose(number, reason, devices)
        for reply in replies:
            if reply.device not in devices:
                continue
            at(reply.device, step)
            try:
                devices[reply.device].backward(reply)
            except LostError as error:
                self._lose(reply.device, error.reason, devices)
        self.steps.note(step, [packet.device for packet in packets if packet.device in devices])

    def _closed(self, devices: dict[int, Device], at: StepWatcher) -> list[DeviceReport]:
        """Close all parties; the first report has the rows and losses of the round, which are of all parties."""
        closed: list[Session] = []
        for number, device in sorted(devices.items()):
            at(number)
            device.finish()
            side = self.sides[number]
            try:
                side.check(device)
                session = self.edge.close(number)
                side.close(device)
            except LostError as error:
                self._lose(number, error.reason, devices)
                continue
            closed.append(session)
        return [
            DeviceReport(
                device=session.device,
                samples=self.sides[session.device].samples(session.device),
                examples=session.examples,
                steps=session.step,
                skipped=0 if place else self.steps.batches.skipped,
                loss_sum=session.loss_sum(),
                loss_weight=session.loss_weight,
                up_bytes=session.up_bytes,
                down_bytes=session.down_bytes,
                model_bytes=0,
            )
            for place, session in enumerate(self.steps.told(closed))
        ]

    def _lose(self, number: int, reason: str, devices: dict[int, Device]) -> None:
        """Lose a party for the rest of the round; where it had the labels, all are lost."""
        self.lost[number] = lost_reason(self.plan, reason)
        self.edge.lose(number)
        if (device := devices.pop(number, None)) is not None:
            self.sides[number].abandon(device)
        if number == self.steps.holder:
            for other in list(devices):
                self._lose(other, f"{NOBODY}: {reason}", devices)


def with_front(worker: Worker) -> Worker:
    """Returns the worker as its edge sees it: what fronts pass is one tensor, whichever party's it is."""
    view = copy.copy(worker)
    view.segments = {**worker.segments, "front": worker.segments[f"{FRONT}{worker.parties[0]}"]}
    return view
