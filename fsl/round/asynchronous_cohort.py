"""Trains one cohort asynchronously, in one process: uploads and finished fronts in the order in which they arrive."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fsl.errors import LostError, RunError
from fsl.messages.reports import CohortResult, DeviceReport
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.round.cohort import closed, result_of, stepping
from fsl.round.device_side import DeviceSide
from fsl.round.edge_side import EdgeSide
from fsl.round.front_device import Device
from fsl.round.unusable import lost_reason
from fsl.round.workload import Worker
from fsl.segments.states import State
from fsl.trainers.as_they_come import Asynchronous, finished, mixed

STALENESS = "staleness."  # prefixes, in an edge's counts, how many merged fronts had a staleness of this number
UNFINISHED = "it did not finish in the round whose order this one repeats"


@dataclass
class _Underway:
    """A device in its round: its end of the session, what is left to merge, and the front that it took."""

    side: DeviceSide
    device: Device
    steps: int  # in each of its passes
    merges: int  # that are left
    taken: int = 0  # the version of the cohort's front that it took: fronts that were merged before
    since: int = 0  # steps since then


class AsynchronousCohort:
    """The devices that one edge trains in one round, none of which waits for another, and that edge.

    The plan says in which order uploads and finished fronts arrive. A device computes when its upload arrives, since
    nothing that it computes from has changed since it sent it: so the order alone decides what is learnt.
    """

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]):
        self.task, self.plan, self.worker, self.states = task, plan, worker, states
        self.edge = EdgeSide(task, plan, worker, states).server
        if not isinstance(self.edge.trainer, Asynchronous):
            name = type(self.edge.trainer).__name__
            raise RunError(f"fronts are merged by fsl.trainers.Asynchronous, and the trainer of this plan is a {name}")
        if not task.arrivals:
            raise RunError(f"the plan has no order in which uploads arrive at edge {task.edge}")
        self.weight = self.edge.trainer.weight
        self.merges = Counter(event for event in task.arrivals if event < 0)
        self.sides: dict[int, DeviceSide] = {}  # by number of passes
        self.parties: dict[int, _Underway] = {}
        self.front: dict[str, State] = {}  # of the cohort, by segment of the device
        self.version = 0
        self.staleness: Counter[int] = Counter()
        self.lost: dict[int, str] = {}
        self.reports: list[DeviceReport] = []

    def run(self) -> CohortResult:
        """Serve all that arrives; a device whose work is unusable is lost, and the others go on."""
        known = {task.device for task in self.task.devices}
        with stepping(self.plan) as at:
            for event in self.task.arrivals:
                number = event if event >= 0 else -1 - event
                if number not in known:
                    raise RunError(f"the order of arrival names device {number}, which is not in this cohort")
                if number in self.lost:
                    continue
                at(number)
                party = self.parties.get(number) or self._open(number)
                at(number, party.device.step)
                try:
                    if event >= 0:
                        self._serve(party)
                    else:
                        self._merge(party)
                except LostError as error:
                    self._lose(number, lost_reason(self.plan, error.reason))
        for number in sorted(known - self.lost.keys() - {report.device for report in self.reports}):
            self._lose(number, UNFINISHED)
        return self._result()

    def _result(self) -> CohortResult:
        totals, counts = result_of(self.edge, self.reports, self.lost)
        if not self.reports:
            return CohortResult(totals={}, reports=(), counts={}, lost=self.lost)
        side = self._side(1)
        side.add_for_all(self._front(), sum(report.samples for report in self.reports))
        counts.update({f"{STALENESS}{staleness}": fronts for staleness, fronts in self.staleness.items()})
        return CohortResult(
            totals=totals | side.totals,
            reports=tuple(sorted(self.reports, key=lambda report: report.device)),
            counts=counts,
            lost=self.lost,
        )

    def _side(self, passes: int) -> DeviceSide:
        """Returns the devices' side for so many passes, whose batches are those of so many times the local epochs."""
        if passes not in self.sides:
            plan = replace(self.plan, local_epochs=self.plan.local_epochs * passes)
            self.sides[passes] = DeviceSide(self.task.devices, plan, self.worker, self.states)
        return self.sides[passes]

    def _front(self) -> dict[str, State]:
        """Returns the cohort's front as it is now, by segment."""
        if not self.front:
            self.front = {name: self.states[name] for name in self._side(1).views.at(0).segments}
        return self.front

    def _open(self, number: int) -> _Underway:
        """Open a device with the front that the round began with, which it took before anything was merged."""
        passes = max(1, self.merges[finished(number)])
        side = self._side(passes)
        device = side.open(number)
        self.edge.open(number, side.samples(number), side.weight(number))
        steps = len(side.batches[number].rows) // passes
        party = self.parties[number] = _Underway(side, device, steps, self.merges[finished(number)])
        return party

    def _serve(self, party: _Underway) -> None:
        """Let the back learn from a device's next upload, and the device from the reply."""
        number = party.device.device
        if party.since == party.steps or (packet := party.device.forward()) is None:
            raise RunError(f"the order of arrival has more uploads of device {number} than the device has batches")
        party.since += 1
        replies = self.edge.step([packet])
        if (reason := self.edge.refused().get(number)) is not None:
            raise LostError(number, reason)
        for reply in replies:
            party.device.backward(reply)

    def _merge(self, party: _Underway) -> None:
        """Mix a finished front into the cohort's, by its staleness; the device goes on from the cohort's, or is done.

        A front that took no step is as it was taken, and merging it would only undo what others learnt.
        """
        device, side = party.device, party.side
        if party.since < party.steps:
            raise RunError(f"the order of arrival has the front of device {device.device} before its last upload")
        device.finish()
        side.check(device)
        states, front = side.states_of(device), self._front()
        if party.steps:
            staleness = self.version - party.taken
            weight = self.weight(staleness)
            self.front = {name: mixed(front[name], state, weight) for name, state in states.items()}
            self.version += 1
            self.staleness[staleness] += 1
        party.merges -= 1
        if party.merges:
            side.begin_again(device, self._front())
            party.taken, party.since = self.version, 0
            return
        report = closed(side, device, self.edge)
        del self.parties[device.device]
        merges = self.merges[finished(device.device)]
        self.reports.append(replace(report, model_bytes=report.model_bytes * merges))

    def _lose(self, number: int, reason: str) -> None:
        self.lost[number] = reason
        self.edge.lose(number)
        if (party := self.parties.pop(number, None)) is not None:
            party.side.abandon(party.device)
