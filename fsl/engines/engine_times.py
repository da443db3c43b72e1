"""Measures engines on the devices of the first rounds, and keeps the fastest."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from fsl.engines.plain_plans import trainer_kind
from fsl.messages.reports import CohortResult
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.round.workload import Worker
from fsl.segments.sums import Total, merge_totals
from fsl.trainers import Replicated

log = logging.getLogger(__name__)

_PART = 16  # devices that an engine trains to be measured, where a cohort can be divided
_TIMES = 2  # of which the first warms up

TrainBy = Callable[[str, CohortTask], CohortResult]


class EngineTimes:
    """Knows, by kind of plan, how long a device's round takes by each engine; no work is done twice for that."""

    def __init__(self) -> None:
        self._seconds: dict[str, dict[str, list[float]]] = {}

    def train(
        self, names: Sequence[str], task: CohortTask, plan: RoundPlan, worker: Worker, train: TrainBy
    ) -> CohortResult:
        """Train a cohort by the fastest of these engines; while that is not known, by one whose turn it is.

        Where each device has a back of its own, a turn is a part of a large cohort; otherwise it is a round.
        """
        kind = f"{names} {plan.trainer} {plan.batch_size} {plan.local_epochs}"
        known = self._seconds.setdefault(kind, {name: [] for name in names})
        if not self._waiting(known) or len(names) == 1:
            return train(self._fastest(known), task)
        results, devices = [], task.devices
        divided = trainer_kind(plan, worker) is Replicated
        while (waiting := self._waiting(known)) and devices:
            count = _PART if divided and len(devices) >= 2 * _PART else len(devices)
            results.append(self._timed(waiting[0], known, replace(task, devices=devices[:count]), worker, train))
            devices = devices[count:]
        if not waiting:
            told = ", ".join(f"{name} {1e3 * found[-1]:.3g} ms" for name, found in known.items())
            log.info("backend.engine=auto takes %s; a device's round: %s", self._fastest(known), told)
        if devices:
            results.append(train(self._fastest(known), replace(task, devices=devices)))
        return joined(results)

    def _waiting(self, known: dict[str, list[float]]) -> list[str]:
        return [name for name, seconds in known.items() if len(seconds) < _TIMES]

    def _fastest(self, known: dict[str, list[float]]) -> str:
        """Returns the fastest by its last turn; the first of all while some had none."""
        return min(known, key=lambda name: known[name][-1] if len(known[name]) == _TIMES else 0.0)

    def _timed(
        self, name: str, known: dict[str, list[float]], task: CohortTask, worker: Worker, train: TrainBy
    ) -> CohortResult:
        started = time.perf_counter()
        result = train(name, task)
        if worker.accelerator.type == "cuda":
            torch.cuda.synchronize(worker.accelerator)
        known[name].append((time.perf_counter() - started) / len(task.devices))
        return result


def joined(results: Sequence[CohortResult]) -> CohortResult:
    """Returns the results of parts of a cohort as one."""
    totals: dict[str, Total] = {}
    counts: dict[str, int] = {}
    lost: dict[int, str] = {}
    for result in results:
        merge_totals(totals, result.totals)
        lost |= result.lost
        for name, count in result.counts.items():
            counts[name] = counts.get(name, 0) + count
    reports = sorted((report for result in results for report in result.reports), key=lambda report: report.device)
    return CohortResult(totals=totals, reports=tuple(reports), counts=counts, lost=lost)
