"""Chooses what trains a cohort: the loop, one graph, stacks, or one step in common; says so where it is not the named."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch

from fsl import seeds
from fsl.engines.low_rank_stack import LowRankStack, low_rank_pays, why_not
from fsl.engines.one_graph import OneGraphCohort
from fsl.engines.one_step import OneStep
from fsl.engines.plain_plans import beyond, beyond_stacks, trainer_kind
from fsl.engines.stack import NotStackedError, Stack, StackPool
from fsl.engines.stack_trial import trial
from fsl.engines.stacked_cohort import StackedCohort
from fsl.engines.weight_stack import WeightStack
from fsl.messages.reports import CohortResult
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.round.batches import plan_batches
from fsl.round.kept_states import load_private
from fsl.round.node import by_the_loop
from fsl.round.workload import Worker
from fsl.segments.learner import SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.states import State
from fsl.segments.sums import Total, merge_totals
from fsl.trainers import Pooled, Replicated

log = logging.getLogger(__name__)

EngineName = Literal["auto", "loop", "stacked", "pooled", "fused"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
Train = Callable[[CohortTask, RoundPlan, Worker, Mapping[str, State]], CohortResult]

_STACK_BYTES = 1 << 24  # of what a stack keeps of its devices: more than that leaves a core's caches
_MEASURED = 8  # devices at least that each engine trains to be measured


class Engines:
    """A node's engines, and what it knows of them: which were tried, and which was fastest.

    `name`: "loop" trains step by step, device and edge apart. "fused" does the same to the bit in one graph a device,
    where each device has a back of its own. "stacked" trains several devices in one batch, each with its own weights.
    "pooled" does for devices that make one step a round, which need no weights of their own. "auto" measures all that
    apply and keeps the fastest. Where one does not apply, the next slower one trains, and the log says why, once.
    """

    def __init__(self, name: EngineName):
        self.name = name
        self._said: set[str] = set()
        self._pools: dict[tuple[int, str, str], StackPool | str] = {}  # or why there is none
        self._fastest: dict[str, str] = {}
        self._seconds: dict[str, dict[str, list[float]]] = {}

    def train(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]) -> CohortResult:
        """Train a cohort for one round."""
        if self.name == "loop":
            return by_the_loop(task, plan, worker, states)
        if self.name == "auto":
            return self._measured(task, plan, worker, states)
        return self._by(self.name, task, plan, worker, states)[1]

    def _by(
        self, name: str, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]
    ) -> tuple[str, CohortResult]:
        """Train by an engine, or by the next that can; returns its name, too."""
        reason = beyond(task, plan, worker)
        if reason is None and name in ("stacked", "pooled"):
            reason, make = self._stacking(name, task, plan, worker, states)
            if make is not None:
                try:
                    return name, make()
                except NotStackedError as error:
                    reason = str(error)
        if reason is not None and name != "fused":
            self._say(f"backend.engine={name} does not apply ({reason})")
        if beyond(task, plan, worker) is None and trainer_kind(plan, worker) is Replicated:
            return "fused", OneGraphCohort(task, plan, worker, states).run()
        return "loop", by_the_loop(task, plan, worker, states)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.warning("%s; devices are trained one after another, with the same result", text)

    # Stacks, each tried once on two devices.

    def _stacking(
        self, name: str, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]
    ) -> tuple[str | None, Callable[[], CohortResult] | None]:
        """Returns why a cohort cannot be trained in stacks, or what makes the one that does so."""
        kind = trainer_kind(plan, worker)
        if kind not in (Replicated, Pooled):
            return f"the strategy's edge trains by {plan.trainer.target if plan.trainer else None}", None
        if reason := beyond_stacks(plan, worker):
            return reason, None
        sizes = self._sizes(task, plan, worker)
        if name == "pooled" and len(sizes) != 1:
            return (
                f"devices make {len(sizes)} steps a round, and each step but the first needs weights of its own",
                None,
            )
        if name == "pooled" and plan.fronts != "averaged":
            return f"fronts are {plan.fronts}, and devices that step together have no weights of their own", None
        if not sizes:
            return "a device has no batch", None
        segments = ("front", "back") if kind is Replicated else ("front",)
        pools: dict[str, StackPool] = {}
        recipe = OptimizerRecipe(plan.optimizer, worker.workload.allowed)
        inputs = self._inputs(worker)
        for segment in segments:
            runtime = worker.segments[segment]
            form = self._form(name, runtime, plan, sizes)
            key = id(worker), segment, f"{form} {plan.optimizer.text}"
            start = _start(task, worker, states, segment)
            if key not in self._pools:
                pool = StackPool(partial(_made, form, runtime, recipe))
                wrong = trial(pool, runtime, recipe, start, inputs, plan.learning_rates[segment] or 0.1)
                self._pools[key] = wrong or pool
            found = self._pools[key]
            if isinstance(found, str):
                return found, None
            pools[segment] = found
            if segment != segments[-1]:
                inputs = _outputs(runtime, start, inputs)
        return None, partial(self._cohort, task, plan, worker, states, pools)

    def _cohort(
        self,
        task: CohortTask,
        plan: RoundPlan,
        worker: Worker,
        states: Mapping[str, State],
        pools: Mapping[str, StackPool],
    ) -> CohortResult:
        for pool in pools.values():
            pool.free()
        even = any(pool.example.even for pool in pools.values())
        width = partial(_width, [pool.example for pool in pools.values()])
        return StackedCohort(task, plan, worker, states, lambda name: pools[name].borrow(), width, even).run()

    def _sizes(self, task: CohortTask, plan: RoundPlan, worker: Worker) -> list[int]:
        """Returns the batch sizes of the device with most samples."""
        longest = max((worker.workload.partition.size(one.device), one.device) for one in task.devices)[1]
        rows = worker.workload.partition.indices(longest)
        return [len(batch) for batch in plan_batches(rows, plan, longest, worker.skip_single).rows]

    def _inputs(self, worker: Worker) -> torch.Tensor:
        """Returns four rows for each of two devices, all of them different where there are so many."""
        train = worker.workload.data.train
        draw = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(train), generator=draw)
        with seeds.left_as_found(), seeds.pythons_generators(0):  # a data set may draw its items at random
            inputs: torch.Tensor = train.batch(rows[torch.arange(8) % len(rows)])[0]
        return inputs.to(worker.accelerator)

    def _form(self, name: str, runtime: SegmentRuntime, plan: RoundPlan, sizes: list[int]) -> str:
        if name == "pooled":
            return "one step"
        fits = why_not(runtime, plan.optimizer) is None
        return "low rank" if fits and low_rank_pays(runtime, sizes) else "weights"

    # auto: what is fastest here.

    def _measured(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]) -> CohortResult:
        """Train by the fastest engine; while that is not known, let each train a part of the devices, or a round."""
        kind = f"{plan.trainer} {plan.device.target} {plan.batch_size} {plan.local_epochs}"
        if (fastest := self._fastest.get(kind)) is not None:
            return self._by(fastest, task, plan, worker, states)[1]
        seconds = self._seconds.setdefault(kind, {})
        if trainer_kind(plan, worker) is not Replicated or len(task.devices) < 2 * _MEASURED * len(_TRIED):
            tried = min(_TRIED, key=lambda name: len(seconds.setdefault(name, [])))
            result = self._timed(tried, seconds, task, plan, worker, states)
        else:
            results = []
            for name, part in _parts(task):
                results.append(self._timed(name, seconds, part, plan, worker, states))
            result = _joined(results)
        if all(len(seconds.get(name, [])) >= 2 for name in _TRIED):
            best = {name: min(found[1:]) for name, found in seconds.items()}  # the first warms up
            self._fastest[kind] = fastest = min(best, key=lambda name: best[name])
            told = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in best.items())
            log.info("backend.engine=auto takes %s; a device's round takes %s", fastest, told)
        return result

    def _timed(
        self,
        name: str,
        seconds: dict[str, list[float]],
        task: CohortTask,
        plan: RoundPlan,
        worker: Worker,
        states: Mapping[str, State],
    ) -> CohortResult:
        started = time.perf_counter()
        _, result = self._by(name, task, plan, worker, states)
        if worker.accelerator.type == "cuda":
            torch.cuda.synchronize(worker.accelerator)
        seconds.setdefault(name, []).append((time.perf_counter() - started) / max(1, len(task.devices)))
        return result


_TRIED = ("fused", "stacked")  # "fused" stands for the loop, where it does not apply


def _parts(task: CohortTask) -> Iterator[tuple[str, CohortTask]]:
    """Divide a cohort so that each engine trains two parts, the first to warm up; the last trains the rest."""
    devices, names = task.devices, [name for name in _TRIED for _ in range(2)]
    for place, name in enumerate(names):
        last = place == len(names) - 1
        part = devices[place * _MEASURED :] if last else devices[place * _MEASURED : (place + 1) * _MEASURED]
        yield name, replace(task, devices=part)


def _joined(results: list[CohortResult]) -> CohortResult:
    """Returns the results of parts of a cohort as one."""
    totals: dict[str, Total] = {}
    counts: dict[str, int] = {}
    lost: dict[int, str] = {}
    for result in results:
        merge_totals(totals, dict(result.totals))
        for name, count in result.counts.items():
            counts[name] = counts.get(name, 0) + count
        lost |= result.lost
    reports = sorted((report for result in results for report in result.reports), key=lambda report: report.device)
    return CohortResult(totals=totals, reports=tuple(reports), counts=counts, lost=lost)


def _start(task: CohortTask, worker: Worker, states: Mapping[str, State], segment: str) -> State:
    """Returns a state at which a device of a cohort begins: that of all, or the first device's own."""
    if segment in states:
        return states[segment]
    own = load_private(worker, segment, task.devices[0])
    assert own is not None  # the cloud sends a segment that a device does not have
    return own


def _made(form: str, runtime: SegmentRuntime, recipe: OptimizerRecipe) -> Stack:
    if form == "one step":
        return OneStep(runtime, recipe.spec)
    return LowRankStack(runtime, recipe.spec) if form == "low rank" else WeightStack(runtime, recipe)


def _outputs(runtime: SegmentRuntime, state: State, inputs: torch.Tensor) -> torch.Tensor:
    runtime.hold(state)
    with torch.no_grad(), seeds.left_as_found():
        found: torch.Tensor = runtime.module(inputs.clone())
    return found


def _width(stacks: Sequence[Stack], rows: int) -> int:
    """Returns how many devices a stack may have at most, of which so many rows are kept."""
    return max(8, min(256, _STACK_BYTES // max(1, sum(stack.bytes_of(rows) for stack in stacks))))
