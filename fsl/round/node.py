"""Trains and evaluates on a Flower node, as a round's message asks."""

import json
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fsl.flower.frozen_records import take_frozen
from fsl.flower.records import record_to_states, reports_to_metrics, totals_to_record
from fsl.messages.record_names import ARRAYS, LOST, METRICS, REMARKS
from fsl.messages.reports import CohortResult
from fsl.messages.round_plan import CohortTask, EvaluatePlan, RoundPlan, joined
from fsl.round.asynchronous_cohort import AsynchronousCohort
from fsl.round.cohort import Cohort, stepping
from fsl.round.device_scores import device_scores
from fsl.round.device_weights import refuse_other_counts
from fsl.round.moving_cohorts import MovingCohorts
from fsl.round.vertical_cohort import VerticalCohort
from fsl.round.vertical_evaluation import evaluate_parties
from fsl.round.whole_model import WholeModelCohort
from fsl.round.workload import Worker, Workload
from fsl.segments.states import State
from fsl.segments.sums import Total, WeightedSum, merge_totals

TrainCohort = Callable[[CohortTask, RoundPlan, Worker, Mapping[str, State]], CohortResult]


def by_the_loop(task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]) -> CohortResult:
    """Train a cohort step by step, device and edge apart, as they are in a real federation."""
    return Cohort(task, plan, worker, states).run()


class Node:
    """Hosts devices and edges: their data, one live copy of the modules, and the states they keep between rounds.

    `train_cohort` trains a cohort of devices that stay at their edge: by the loop, or by an engine of `fsl.engines`.
    """

    def __init__(self, workload: Workload, train_cohort: TrainCohort = by_the_loop):
        torch.set_num_threads(workload.threads)
        self.worker = Worker(workload)
        self._train_cohort = train_cohort
        self.layouts = {name: segment.layout for name, segment in self.worker.segments.items()}
        self.frozen = {name: layout.frozen for name, layout in self.layouts.items()}

    def train(self, plan: RoundPlan, arrays: ArrayRecord) -> RecordDict:
        """Train this node's cohorts for one round; returns sums of n_k * w_k, device reports, and lost devices."""
        self.worker.store.begin()
        for cohort in plan.cohorts:
            refuse_other_counts(cohort.devices, self.worker.workload.partition)
        take_frozen(arrays, plan.frozen, self.frozen, self.layouts)
        states = record_to_states(arrays, self.layouts, self.worker.accelerator)
        with stepping(plan):
            results = self._train(plan, states)
            self.worker.refuse_changed()
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
        if plan.fronts == "merged":
            return [AsynchronousCohort(task, plan, self.worker, states).run() for task in plan.cohorts]
        if self.worker.parties:
            return [VerticalCohort(task, plan, self.worker, states).run() for task in plan.cohorts]
        if not plan.moves:
            return [self._train_cohort(task, plan, self.worker, states) for task in plan.cohorts]
        groups = joined(plan.cohorts, plan.moves)
        return [MovingCohorts(group, plan, self.worker, states).run() for group in groups]

    def evaluate(self, plan: EvaluatePlan, arrays: ArrayRecord) -> MetricRecord:
        """Score devices, each with its private front or all with one, on the test set and on rows of their own."""
        self.worker.store.begin()
        with stepping(plan):
            take_frozen(arrays, plan.frozen, self.frozen, self.worker.chain)
            states = record_to_states(arrays, self.layouts, self.worker.accelerator)
            return (evaluate_parties if self.worker.parties else device_scores)(self.worker, plan, states)
