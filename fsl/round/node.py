"""Trains and evaluates on a Flower node, as a round's message asks."""

import json
import logging
from collections import Counter
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fsl.errors import ConfigError
from fsl.flower.records import record_to_states, reports_to_metrics, totals_to_record
from fsl.messages.record_names import ARRAYS, LOST, METRICS, REMARKS
from fsl.messages.reports import CohortResult
from fsl.messages.round_plan import EvaluatePlan, RoundPlan, joined
from fsl.privacy.leak_probe import leaks
from fsl.round.cohort import Cohort, stepping
from fsl.round.device_weights import refuse_other_counts
from fsl.round.evaluation import evaluate
from fsl.round.kept_states import load_private
from fsl.round.moving_cohorts import MovingCohorts
from fsl.round.vertical_cohort import VerticalCohort
from fsl.round.vertical_evaluation import evaluate_parties
from fsl.round.whole_model import WholeModelCohort
from fsl.round.workload import Worker, Workload
from fsl.segments.states import Replica, State
from fsl.segments.sums import Total, WeightedSum, merge_totals

log = logging.getLogger(__name__)


class Node:
    """Hosts devices and edges: their data, one live copy of the modules, and the states they keep between rounds."""

    def __init__(self, workload: Workload):
        torch.set_num_threads(workload.threads)
        self.worker = Worker(workload)
        self.layouts = {name: segment.layout for name, segment in self.worker.segments.items()}

    def train(self, plan: RoundPlan, arrays: ArrayRecord) -> RecordDict:
        """Train this node's cohorts for one round; returns sums of n_k * w_k, device reports, and lost devices."""
        for cohort in plan.cohorts:
            refuse_other_counts(cohort.devices, self.worker.workload.partition)
        states = record_to_states(arrays, self.layouts, self.worker.accelerator)
        with stepping(plan):
            results = self._train(plan, states)
        self.worker.store.sync()
        totals: dict[str, Total] = {}
        reports = [report for result in results for report in result.reports]
        counts: Counter[str] = Counter()
        for result in results:
            merge_totals(totals, result.totals)
            counts.update(result.counts)
        weights = {name: total.weight for name, total in totals.items() if isinstance(total, WeightedSum)}
        lost = {device: reason for result in results for device, reason in result.lost.items()}
        content = RecordDict({ARRAYS: totals_to_record(totals), METRICS: reports_to_metrics(reports, weights, counts)})
        if lost:
            content[REMARKS] = ConfigRecord({LOST: json.dumps(lost)})
        return content

    def _train(self, plan: RoundPlan, states: Mapping[str, State]) -> list[CohortResult]:
        if plan.trainer is None:
            return [WholeModelCohort(task, plan, self.worker, states).run() for task in plan.cohorts]
        if self.worker.parties:
            return [VerticalCohort(task, plan, self.worker, states).run() for task in plan.cohorts]
        if not plan.moves:
            return [Cohort(task, plan, self.worker, states).run() for task in plan.cohorts]
        groups = joined(plan.cohorts, plan.moves)
        return [MovingCohorts(group, plan, self.worker, states).run() for group in groups]

    def evaluate(self, plan: EvaluatePlan, arrays: ArrayRecord) -> MetricRecord:
        """Score each device's private front, with the shared back, on the test set."""
        with stepping(plan):
            if self.worker.parties:
                return evaluate_parties(
                    self.worker, plan, record_to_states(arrays, self.layouts, self.worker.accelerator)
                )
            return self._evaluate(plan, arrays)

    def _evaluate(self, plan: EvaluatePlan, arrays: ArrayRecord) -> MetricRecord:
        states = record_to_states(arrays, self.layouts, self.worker.accelerator)
        segments = self.worker.chain
        replicas = {name: Replica(s.layout, self.worker.accelerator) for name, s in segments.items()}
        for name, replica in replicas.items():
            if name in states:
                replica.load(states[name])
        workload = self.worker.workload
        if workload.data.test is None:
            raise ConfigError("this node has no test data to evaluate on")
        devices: list[int] = []
        losses, accuracies = [], []
        leaked: dict[str, list[float]] = {}
        for task in plan.devices:
            front = load_private(self.worker, "front", task) or states.get("front")
            if front is None and self.worker.store.forgives:
                log.warning("round %d: device %d has lost its front, and is not evaluated", plan.round, task.device)
                continue
            if front is None:
                raise ConfigError(f"device {task.device} has no front yet, and the message brought none")
            replicas["front"].load(front)
            tail = None if "tail" not in segments else load_private(self.worker, "tail", task) or states.get("tail")
            if tail is not None:
                replicas["tail"].load(tail)
            for name, segment in segments.items():
                if name in states and name not in ("front", "tail") and segment.layout.has_buffers:
                    replicas[name].load(states[name])  # the previous device may have changed them
                segment.install(replicas[name])
            modules = [segment.module for segment in segments.values()]
            score = evaluate(modules, workload.data.test, workload.objective, self.worker.accelerator)
            losses.append(score.loss)
            if score.accuracy is not None:
                accuracies.append(score.accuracy)
            if plan.probe is not None:
                found = leaks(modules[0], workload.data.test, plan.probe, plan.round, task.device)
                for name, value in found.items():
                    leaked.setdefault(name, []).append(value)
            devices.append(task.device)
        return MetricRecord({"device": devices, "loss": losses, "accuracy": accuracies, **leaked})
