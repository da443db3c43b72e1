"""Trains one cohort for one round in one process: device after device, in lockstep where the trainer needs it."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from fsl.errors import DeviceError, FslError, LostError, StepError
from fsl.faults import fault_of, is_fault, is_temporary
from fsl.messages.reports import CohortResult, DeviceReport
from fsl.messages.round_plan import CohortTask, EvaluatePlan, RoundPlan
from fsl.round.device_side import DeviceSide
from fsl.round.edge_server import EdgeServer
from fsl.round.edge_side import EdgeSide
from fsl.round.front_device import Device
from fsl.round.round_privacy import reported_batch_size
from fsl.round.sessions import Session
from fsl.round.unusable import lost_reason
from fsl.round.workload import Worker
from fsl.segments.states import State
from fsl.segments.sums import Total, merge_totals
from fsl.split.placing import TOP


class Cohort:
    """The devices that one edge trains together in one round, and that edge."""

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]):
        self.plan = plan
        self.devices = DeviceSide(task.devices, plan, worker, states)
        self.edge = EdgeSide(task, plan, worker, states).server
        self.lost: dict[int, str] = {}

    def run(self) -> CohortResult:
        """Train every device of the cohort once; a device whose work is unusable is lost, and the others go on."""
        trainer = self.edge.trainer
        devices = sorted(self.devices.tasks)
        groups = [devices] if trainer.lockstep else [[device] for device in trainer.arrange(devices)]
        reports = [report for group in groups for report in self._run_group(group)]
        totals, counts = result_of(self.edge, reports, self.lost)
        if not reports:
            return CohortResult(totals={}, reports=(), counts={}, lost=self.lost)
        if self.plan.fronts == "relayed":
            self.devices.add_for_all(self.devices.relayed, sum(r.samples for r in reports))
        if self.plan.fronts != "private":
            merge_totals(totals, self.devices.totals)
        return CohortResult(
            totals=totals, reports=tuple(sorted(reports, key=lambda r: r.device)), counts=counts, lost=self.lost
        )

    def _run_group(self, ids: list[int]) -> list[DeviceReport]:
        devices, reports = [], []
        with stepping(self.plan) as at:
            for number in ids:
                at(number)
                devices.append(self.devices.open(number))
                self.edge.open(number, self.devices.samples(number), self.devices.weight(number))
            lost = self._train(devices)
            for device in devices:
                at(device.device)
                if device.device not in lost:
                    try:
                        reports.append(closed(self.devices, device, self.edge))
                        continue
                    except LostError as error:
                        lost[device.device] = lost_reason(self.plan, error.reason)
                        self.edge.lose(device.device)
                self.devices.abandon(device)
            self.lost |= lost
        return reports

    def _train(self, devices: list[Device]) -> dict[int, str]:
        """Run the devices' steps; returns those that the edge has lost, with the reason."""
        return train(devices, self.edge, self.plan)


def result_of(
    edge: EdgeServer, reports: list[DeviceReport], lost: dict[int, str]
) -> tuple[dict[str, Total], Counter[str]]:
    """Returns an edge's back and counts, if any device's work counts; a lost back loses all its devices."""
    try:
        above = None if edge.above is None else edge.above.result()
        totals = edge.totals() | ({} if above is None else {TOP: above})
    except LostError as error:
        lost |= {report.device: error.reason for report in reports}
        reports.clear()
        return {}, Counter()
    return (totals, edge.counts()) if reports else ({}, Counter())


def closed(devices: DeviceSide, device: Device, edge: EdgeServer) -> DeviceReport:
    """Close a device at both ends and return its report; under device-level privacy clip its update first.

    LostError, before any of its work counts, where that is unusable.
    """
    if devices.clip is not None:
        square = devices.update_square(device) + edge.update_square(device.device)
        devices.shorten(device, square)
        edge.shorten(device.device, square, devices.clip)
    devices.check(device)
    session = edge.close(device.device)
    devices.close(device)
    return report_of(devices, session)


def report_of(devices: DeviceSide, session: Session) -> DeviceReport:
    """Report a device's round from its closed session: samples, steps, losses and bytes."""
    return DeviceReport(
        device=session.device,
        samples=int(session.weight),
        examples=reported_rows(devices.plan, session.examples, session.step),
        steps=session.step,
        skipped=devices.batches[session.device].skipped,
        loss_sum=reported_loss(devices.plan, session.loss_sum()),
        loss_weight=reported_weight(devices.plan, session.loss_weight, session.step),
        up_bytes=session.up_bytes,
        down_bytes=session.down_bytes,
        model_bytes=devices.model_bytes(session.device),
        hop_up_bytes=session.hop_up_bytes,
        hop_down_bytes=session.hop_down_bytes,
    )


def reported_rows(plan: RoundPlan, rows: int, steps: int) -> int:
    """Returns a round's rows for its report: the expected number under Poisson draws, whose sizes are private."""
    expected = reported_batch_size(plan)
    return rows if expected is None else steps * expected


def reported_weight(plan: RoundPlan, weight: float, steps: int) -> float:
    """Returns the weight of a round's losses for its report: under Poisson draws the expected rows."""
    expected = reported_batch_size(plan)
    return weight if expected is None else float(steps * expected)


def reported_loss(plan: RoundPlan, loss: float) -> float:
    """Returns a training loss for its report: NaN where the run is private and does not allow it."""
    return math.nan if plan.privacy is not None and plan.privacy.withheld else loss


def train(devices: list[Device], edge: EdgeServer, plan: RoundPlan) -> dict[int, str]:
    """Run the training loop: every device uploads a step, the edge answers, until all batches are used up.

    Returns the devices that the edge has lost, since their work is unusable, with the reason.
    """
    by_id = {device.device: device for device in devices}
    lost: dict[int, str] = {}
    edge.tails = lambda calls: [by_id[call.device].end(call) for call in calls]

    def lose(device: int, reason: str) -> None:
        lost[device] = lost_reason(plan, reason)
        del by_id[device]
        edge.lose(device)

    with stepping(plan) as at:
        while by_id:
            packets = []
            for device in list(by_id.values()):
                at(device.device, device.step)
                try:
                    if (packet := device.forward()) is not None:
                        packets.append(packet)
                except LostError as error:
                    lose(device.device, error.reason)
            replies = edge.step(packets) if packets else edge.flush()
            for number, reason in edge.refused().items():
                lose(number, reason)
            for reply in replies:
                if reply.device not in by_id:
                    continue
                at(reply.device, reply.step)
                try:
                    by_id[reply.device].backward(reply)
                except LostError as error:
                    lose(reply.device, error.reason)
            if not packets:
                break
        for device in by_id.values():
            device.finish()
            if (factors := device.take_clip_factors()) is not None:
                edge.apply_clip_factors(device.device, factors)
    return lost


class StepWatcher(Protocol):
    """Notes where a round is: at a device, before or after its steps (None), or in one of them."""

    def __call__(self, device: int, step: int | None = None) -> None:
        """Note that a device's step begins."""


@contextmanager
def stepping(plan: RoundPlan | EvaluatePlan) -> Iterator[StepWatcher]:
    """Add run, round, device, step, file and line to what fails inside; yields the function that notes steps."""
    place: tuple[int | None, int | None] = (None, None)

    def at(device: int, step: int | None = None) -> None:
        nonlocal place
        place = (device, step)

    try:
        yield at
    except StepError as error:
        raise device_error(plan, error.device, error.step, error.__cause__ or error) from error.__cause__
    except FslError:
        raise
    except OSError as error:
        if not is_fault(error):
            raise
        raise device_error(plan, *place, error) from error
    except (Exception, SystemExit) as error:
        raise device_error(plan, *place, error) from error


def device_error(
    plan: RoundPlan | EvaluatePlan, device: int | None, step: int | None, error: BaseException
) -> DeviceError:
    """Returns a device's failure as an error that names its place in the run and in the code."""
    at = [f"{name} {number}" for name, number in (("device", device), ("step", step)) if number is not None]
    where = ", ".join([f"run {plan.run}", f"round {plan.round}", *at])
    return DeviceError(str(fault_of(error, where)), passing=is_temporary(error))
