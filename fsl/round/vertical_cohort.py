"""Trains the parties of vertical split learning for one round in one process, in lockstep over the same people."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fsl.errors import LostError
from fsl.messages.reports import CohortResult, DeviceReport
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.messages.steps import Upload, UploadPacket
from fsl.models.vertical_model import FRONT
from fsl.round.batches import BatchPlan
from fsl.round.cohort import StepWatcher, result_of, stepping
from fsl.round.edge_server import weighted_loss
from fsl.round.edge_side import EdgeSide
from fsl.round.party_device import PartyDevice
from fsl.round.party_side import PartySide, task_of
from fsl.round.unusable import lost_reason
from fsl.round.workload import Worker
from fsl.segments.states import State

_NOBODY = "nobody is left who has the labels"


class VerticalCohort:
    """The parties of one round, and the edge that fuses what they send.

    A party that is absent for a step uploads nothing in it; one that is absent for the round is not in `task`.
    """

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]):
        self.plan = plan
        self.worker = worker
        self.data = task_of(worker)
        self.tails = "tail" in worker.chain
        self.sides = {one.device: PartySide(one, plan, worker, states) for one in task.devices}
        self.edge = EdgeSide(task, plan, _with_front(worker), states).server
        self.lost: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        self._losses: list[Tensor] = []
        self._weights: list[float] = []
        self._rows = 0

    def run(self) -> CohortResult:
        """Train all parties once; a party whose work is unusable is lost, and the others go on without it."""
        with stepping(self.plan) as at:
            devices = self._opened(at)
            batches = next(iter(self.sides.values())).batches[min(devices)]
            self.edge.tails = lambda calls: [devices[call.device].end(call) for call in calls]
            for step, people in enumerate(batches.rows):
                if not devices:
                    break
                self._step(step, people, devices, at)
            reports = self._closed(devices, batches, at)
        totals, counts = result_of(self.edge, reports, self.lost)
        if not reports:
            return CohortResult(totals={}, reports=(), counts={}, lost=self.lost)
        return CohortResult(totals=totals, reports=tuple(reports), counts=counts + self.counts, lost=self.lost)

    def _opened(self, at: StepWatcher) -> dict[int, PartyDevice]:
        devices = {}
        for number, side in sorted(self.sides.items()):
            at(number)
            devices[number] = side.open(number)
            self.edge.open(number, side.samples(number))
        return devices

    def _step(self, step: int, people: Tensor, devices: dict[int, PartyDevice], at: StepWatcher) -> None:
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
            if packet is None:
                self.edge.session(number).step += 1
            else:
                packets.append(packet)
        packets = [packet for packet in packets if packet.device in devices]
        missing = [p for p in self.worker.parties if p not in {self.worker.parties[k.device] for k in packets}]
        self.counts.update({"absent_steps": len(missing)}, **{f"absent_{party}": 1 for party in missing})
        if not packets:
            self.counts["skipped_steps"] += bool(devices)
            return
        self._answer(step, people, packets, devices, at)

    def _answer(
        self,
        step: int,
        people: Tensor,
        packets: Sequence[UploadPacket],
        devices: dict[int, PartyDevice],
        at: StepWatcher,
    ) -> None:
        replies = self.edge.answer(self._labelled(people, packets))
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
        self._note(packets, len(people), devices)

    def _labelled(self, people: Tensor, packets: Sequence[UploadPacket]) -> list[Upload]:
        """Decode a step's uploads; each then has the labels of these people, or whose tail has them."""
        uploads = [self.edge.receive(packet) for packet in packets]
        holder = self.data.label_party
        if holder is None:
            targets = self.data.train.targets.index_select(0, people).to(self.worker.accelerator)
        else:
            number = self.worker.parties.index(holder)
            targets = next(upload.targets for upload in uploads if upload.device == number)
        if not self.tails:
            weight = self.worker.workload.objective.weight(targets)
            for upload in uploads:
                waiting = self.edge.session(upload.device).waiting
                waiting[upload.step] = replace(waiting[upload.step], loss_weight=weight)
        return [replace(upload, targets=targets) for upload in uploads]

    def _note(self, packets: Sequence[UploadPacket], rows: int, devices: Mapping[int, PartyDevice]) -> None:
        """Note a step's loss, which all parties have in common, once."""
        holder = None if self.data.label_party is None else self.worker.parties.index(self.data.label_party)
        told = [packet.device for packet in packets if packet.device in devices]
        if told:
            session = self.edge.session(holder if holder in told else told[0])
            self._losses.append(session.losses[-1])
            self._weights.append(session.batches[-1].loss_weight)
            self._rows += rows

    def _closed(self, devices: dict[int, PartyDevice], batches: BatchPlan, at: StepWatcher) -> list[DeviceReport]:
        """Close all parties; the first report has the rows and losses of the round, which are of all parties."""
        reports: list[DeviceReport] = []
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
            first = not reports
            reports.append(
                DeviceReport(
                    device=number,
                    samples=side.samples(number),
                    examples=self._rows if first else 0,
                    steps=len(session.batches),
                    skipped=batches.skipped if first else 0,
                    loss_sum=weighted_loss(self._losses, self._weights) if first else 0.0,
                    loss_weight=sum(self._weights) if first else 0.0,
                    up_bytes=session.up_bytes,
                    down_bytes=session.down_bytes,
                    model_bytes=0,
                )
            )
        return reports

    def _lose(self, number: int, reason: str, devices: dict[int, PartyDevice]) -> None:
        """Lose a party for the rest of the round; where it had the labels, all are lost."""
        self.lost[number] = lost_reason(self.plan, reason)
        self.edge.lose(number)
        if (device := devices.pop(number, None)) is not None:
            self.sides[number].abandon(device)
        if self.worker.parties[number] == self.data.label_party:
            for other in list(devices):
                self._lose(other, f"{_NOBODY}: {reason}", devices)


def _with_front(worker: Worker) -> Worker:
    """Returns the worker as its edge sees it: what fronts pass is one tensor, whichever party's it is."""
    view = copy.copy(worker)
    view.segments = {**worker.segments, "front": worker.segments[f"{FRONT}{worker.parties[0]}"]}
    return view
