"""Counts a round: exactly the devices that finished on their node, at their edge, and at a server above it, if any."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, MetricRecord

from fsl.deployment.cloud.answers import SERVED, TOPPED, reports_in
from fsl.deployment.cloud.closing import too_long
from fsl.errors import WireError
from fsl.flower.records import record_to_states, record_to_totals
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.round.unusable import lost_reason
from fsl.segments.finite import finite_state, finite_total
from fsl.segments.states import Layout
from fsl.segments.sums import DeviceStates, Total, WeightedSum, merge_totals
from fsl.settings.placement import Collected
from fsl.split.placing import TOP

HEAVIEST = 10.0  # an edge's back weighs at most so many times its devices' samples, since draws repeat rows


class RoundResults:
    """Takes in the nodes' replies, and then adds up what counts.

    A device's front comes from its node, its back from its edge, and its top from the server above that edge; if one of
    them did not finish, nothing of the device counts.
    """

    def __init__(
        self,
        plan: RoundPlan,
        cohorts: Sequence[CohortTask],
        samples: Mapping[int, int],
        layouts: Mapping[str, Layout],
        lost: Mapping[int, str],
    ):
        self.plan = plan
        self.cohorts = cohorts
        self.samples = samples
        self.layouts = layouts
        self._lost: dict[int, list[str]] = {device: [reason] for device, reason in lost.items()}
        self._shared: dict[str, Total] = {}
        self._paired: list[tuple[str, WeightedSum, frozenset[int]]] = []  # with two hops, beside who trained each
        self._own: dict[str, DeviceStates] = {}
        self._trained: dict[int, DeviceReport] = {}
        self._served: dict[int, DeviceReport] = {}  # in the order in which edges closed their sessions
        self._topped: set[int] = set()  # devices that the server above their edge closed
        self._counts: Counter[str] = Counter()
        self._void: set[int] = set()  # devices whose work is unusable, or whose answers are not credible

    def add(self, arrays: ArrayRecord, metrics: MetricRecord, most: float = math.inf) -> None:
        """Take in a node's reply; WireError where it is invalid, or gives its sum more weight than `most`."""
        said, served, topped = (reports_in(metrics, prefix) for prefix in ("", SERVED, TOPPED))
        if heavy := next((name for name, weight in said.weights.items() if weight > most), None):
            raise WireError(
                f"its {heavy} is to count {said.weights[heavy]:g}, and its devices have no more than {most:g} samples "
                f"in {HEAVIEST:g} rounds"
            )
        self._trained.update({report.device: report for report in said.devices})
        self._served.update({report.device: report for report in served.devices})
        self._topped.update(report.device for report in topped.devices)
        private = self.plan.privacy is not None and self.plan.privacy.private  # losing one would reveal something
        for report in served.devices:
            if not (private or (math.isfinite(report.loss_sum) and math.isfinite(report.loss_weight))):
                self._void.add(report.device)
                self.lose(report.device, lost_reason(self.plan, "its edge tells a training loss that is not finite"))
        self._counts.update(said.counts)
        whole = self.plan.privacy is not None and self.plan.privacy.client is not None
        # The cloud's weights, not a node's; all equal where privacy protects whole devices.
        weights = {device: 1.0 if whole else float(n) for device, n in self.samples.items()}
        for segment, total in record_to_totals(arrays, said.weights, self.layouts, weights).items():
            trained = frozenset(report.device for report in (topped if segment == TOP else served).devices)
            if isinstance(total, DeviceStates):
                for device, state in total.states.items():
                    self._look(device, segment, finite_state(state))
                merge_totals(self._own, {segment: total})
            elif not finite_total(total):
                for device in trained:
                    self._look(device, segment, False)
            elif isinstance(total, WeightedSum) and self.plan.hops:
                self._paired.append((segment, total, trained))
            elif isinstance(total, WeightedSum):
                merge_totals(self._shared, {segment: total})

    def _look(self, device: int, segment: str, usable: bool) -> None:
        """Discard a device where its own or its shared state of a segment came back unusable."""
        if not usable:
            self._void.add(device)
            self.lose(device, lost_reason(self.plan, f"the {segment} that came back is not finite"))

    def lose(self, device: int, reason: str) -> None:
        """Note a reason why a device did not finish; several may come."""
        said = self._lost.setdefault(device, [])
        if reason not in said:
            said.append(reason)

    def measure(self, start: ArrayRecord, max_norm: float) -> None:
        """Lose the devices whose update from the round's first arrays, `start`, is longer than `max_norm` allows."""
        held = {name.partition(".")[0] for name in start}
        layouts = {name: self.layouts[name] for name in self._own if name in held}
        if self.plan.fronts == "private":
            layouts.pop("front", None)
            layouts.pop("tail", None)
            layouts.pop("head", None)
        for device, reason in too_long(self._own, record_to_states(start, layouts), self._finished(), max_norm).items():
            self._void.add(device)
            self.lose(device, reason)

    def discard(self, devices: Sequence[int], reason: str) -> None:
        """Discard these devices' work, since a node that they depend on gave an unusable answer."""
        self._void.update(devices)
        for device in devices:
            self.lose(device, reason)

    def collected(self, failed_nodes: int) -> Collected:
        """Returns the round's outcome."""
        self._lose_other_counts()
        counted = self._finished()
        reports = [self._report(device) for device in counted]
        if self.plan.trainer is not None and self.plan.trainer.locate().one_loss:
            reports[1:] = [
                replace(report, examples=0, skipped=0, loss_sum=0.0, loss_weight=0.0) for report in reports[1:]
            ]
        for cohort in self.cohorts:
            for task in cohort.devices:
                if task.device not in counted and task.device not in self._lost:
                    ends = "at one end of the wire only"
                    self.lose(task.device, f"it finished {'not on all its nodes' if self.plan.hops else ends}")
        totals = dict(self._shared)
        for segment, shared, devices in self._paired:
            # A shared back and the top above it are of one edge: where no device finished at both, neither counts.
            if devices & set(counted):
                merge_totals(totals, {segment: shared})
        for segment, states in self._own.items():
            relayed = self.plan.fronts == "relayed" and segment not in ("back", TOP)
            total = self._relayed(states, counted) if relayed else _only(states, counted)
            if total is not None:
                totals[segment] = total
        lost = {device: "; ".join(said) for device, said in sorted(self._lost.items()) if device not in counted}
        return Collected(totals, reports, self._counts, lost, failed_nodes)

    def _finished(self) -> list[int]:
        """Returns the devices that finished wherever they trained, and whose work can be used."""
        finished = self._trained.keys() & self._served.keys()
        return sorted((finished & self._topped if self.plan.hops else finished) - self._void)

    def _lose_other_counts(self) -> None:
        held = {task.device: task.samples for cohort in self.cohorts for task in cohort.devices if task.samples}
        for device, report in self._trained.items():
            if device in held and report.samples != held[device]:
                self._void.add(device)
                self.lose(device, f"it reports {report.samples} samples, and its node answered {held[device]}")

    def _report(self, device: int) -> DeviceReport:
        mine, edge = self._trained[device], self._served[device]
        return replace(
            edge,
            samples=self.samples[device],
            skipped=mine.skipped + edge.skipped,
            model_bytes=mine.model_bytes,
            up_bytes=edge.up_bytes + mine.up_bytes,  # bytes of repeated steps, which only the device's node knows
            down_bytes=edge.down_bytes + mine.down_bytes,
            moves=mine.moves,
            wasted_steps=mine.wasted_steps,
            restarts=mine.restarts,
        )

    def _relayed(self, states: DeviceStates, counted: Sequence[int]) -> Total | None:
        """Returns, for each edge's chain of devices, the last front that counts, with the weight of all that count."""
        total = WeightedSum(states.layout)
        for cohort in self.cohorts:
            mine = {task.device for task in cohort.devices}
            chain = [device for device in self._served if device in mine and device in counted]
            if chain and chain[-1] in states.states:
                total.add(states.states[chain[-1]], sum(self.samples[device] for device in chain))
        return total if total.weight else None


def _only(states: DeviceStates, counted: Sequence[int]) -> DeviceStates | None:
    chosen = DeviceStates(states.layout)
    for device in counted:
        if device in states.states:
            chosen.states[device], chosen.weights[device] = states.states[device], states.weights[device]
    return chosen if chosen.states else None
