"""Finds out what can be stacked of a round, by its plan and by a trial of each segment, and trains it so."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fsl import seeds
from fsl.engines.low_rank_stack import LowRankStack, low_rank_pays, why_not
from fsl.engines.one_step import OneStep
from fsl.engines.plain_plans import beyond, beyond_stacks, name_of, trainer_kind
from fsl.engines.segment_runs import SegmentRuns
from fsl.engines.sgd_history import SgdHistory
from fsl.engines.stack import Stack, StackPool
from fsl.engines.stack_trial import trial
from fsl.engines.stacked_cohort import StackedCohort
from fsl.engines.weight_stack import WeightStack
from fsl.messages.reports import CohortResult
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.round.batches import plan_batches
from fsl.round.kept_states import load_private
from fsl.round.workload import Worker
from fsl.segments.learner import SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.precision import Precision
from fsl.segments.states import State
from fsl.trainers import Pooled, Replicated

_BYTES = 1 << 24  # of what a stack keeps of its devices: more would leave a core's caches
_LEAST, _MOST = 8, 256  # devices of a stack
_ROWS = 4  # of each of the two devices of a trial


class Stacking:
    """The stacks of one node, each tried once.

    `say`: compile what stacks compute, and tell this why not where that is not done; None: leave it as it is.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._pools: dict[tuple[int, str, str], StackPool | str] = {}  # or why the segment cannot be stacked

    def why_not(
        self, name: str, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]
    ) -> str | None:
        """Returns why a cohort cannot be trained in stacks ("stacked"), or in one step ("pooled"); None if it can."""
        if reason := beyond(plan, worker) or beyond_stacks(plan, worker):
            return reason
        if trainer_kind(plan, worker) not in (Replicated, Pooled):
            return f"{'nobody' if plan.trainer is None else name_of(plan.trainer)} at the edge goes by stacks"
        sizes = batch_sizes(task, plan, worker)
        if not sizes:
            return "no device has a batch"
        if name == "pooled" and (reason := _beyond_one_step(plan, sizes)):
            return reason
        found = self._found(name, sizes, task, plan, worker, states)
        return next((pool for pool in found if isinstance(pool, str)), None)

    def train(
        self, name: str, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]
    ) -> CohortResult:
        """Train a cohort that can be; NotStackedError where it turns out not to be."""
        sizes = batch_sizes(task, plan, worker)
        pools: dict[str, StackPool] = {}
        for segment, pool in zip(_segments(plan, worker), self._found(name, sizes, task, plan, worker, states)):
            assert isinstance(pool, StackPool)
            pool.free()
            pools[segment] = pool
        stacks = [pool.example for pool in pools.values()]
        even = any(stack.even for stack in stacks)
        cohort = StackedCohort(
            task, plan, worker, states, lambda segment: pools[segment].borrow(), partial(_width, stacks), even
        )
        return cohort.run()

    def _found(
        self,
        name: str,
        sizes: Sequence[int],
        task: CohortTask,
        plan: RoundPlan,
        worker: Worker,
        states: Mapping[str, State],
    ) -> list[StackPool | str]:
        """Returns for each segment its stacks, or why it has none."""
        found = []
        recipe = OptimizerRecipe(plan.optimizer, worker.workload.allowed)
        for segment in _segments(plan, worker):
            runtime = worker.segments[segment]
            form = "one step" if name == "pooled" else _form(runtime, plan, sizes)
            key = id(worker), segment, f"{form} {plan.control.precision} {plan.optimizer.text}"
            if key not in self._pools:
                inputs = _inputs(task, worker, segment, states)
                start = _start(task, worker, states, segment)
                wrong = None
                # In float32 as well, where numbers are told apart that look alike in fewer digits.
                for precision in dict.fromkeys(("float32", plan.control.precision)):
                    runs = SegmentRuns(runtime, precision)
                    pool = StackPool(partial(_made, form, runtime, recipe, runs))
                    rate = plan.learning_rates[segment] or 0.1
                    wrong = wrong or trial(pool, runtime, recipe, start, inputs, rate, precision)
                self._pools[key] = wrong or pool
                if wrong is None and self._say is not None:
                    self._compile(form, runtime, runs, plan.control.precision)
            found.append(self._pools[key])
        return found

    def _compile(self, form: str, runtime: SegmentRuntime, runs: SegmentRuns, precision: Precision) -> None:
        assert self._say is not None
        if form == "low rank":
            self._say(f"the {runtime.name} is of linear layers without weights of their own, a product of torch's each")
        elif precision != "float32":
            self._say(f"precision={precision} stays as it is, since compiled code rounds at other places")
        elif not any(field.trainable for field in runtime.layout.fields):
            self._say(f"the {runtime.name} trains nothing")
        else:
            runs.compile(self._say)


def batch_sizes(task: CohortTask, plan: RoundPlan, worker: Worker) -> list[int]:
    """Returns the sizes of the round's batches of the device with most samples."""
    partition = worker.workload.partition
    longest = max((partition.size(one.device), one.device) for one in task.devices)[1]
    return [len(rows) for rows in plan_batches(partition.indices(longest), plan, longest, worker.skip_single).rows]


def _beyond_one_step(plan: RoundPlan, sizes: Sequence[int]) -> str | None:
    if len(sizes) != 1:
        return f"devices make up to {len(sizes)} steps a round, and each but the first needs weights of its own"
    if plan.fronts != "averaged":
        return f"fronts are {plan.fronts}, and devices that step together have no weights of their own"
    return None if SgdHistory.of(plan.optimizer) else f"optimizer {plan.optimizer.target} is no torch.optim.SGD"


def _segments(plan: RoundPlan, worker: Worker) -> tuple[str, ...]:
    """Returns the segments of which each device has its own: a shared back is its trainer's."""
    return ("front", "back") if trainer_kind(plan, worker) is Replicated else ("front",)


def _form(runtime: SegmentRuntime, plan: RoundPlan, sizes: Sequence[int]) -> str:
    fits = why_not(runtime, plan.optimizer) is None and low_rank_pays(runtime, sizes)
    fits = fits and plan.control.precision == "float32"  # its products are no layer's, which autocast knows
    return "low rank" if fits else "weights"


def _made(form: str, runtime: SegmentRuntime, recipe: OptimizerRecipe, runs: SegmentRuns) -> Stack:
    if form == "one step":
        return OneStep(runtime, recipe.spec, runs)
    return LowRankStack(runtime, recipe.spec) if form == "low rank" else WeightStack(runtime, recipe, runs)


def _start(task: CohortTask, worker: Worker, states: Mapping[str, State], segment: str) -> State:
    """Returns a state at which a device of a cohort begins: that of all, or the first device's own."""
    if segment in states:
        return states[segment]
    own = load_private(worker, segment, task.devices[0])
    assert own is not None  # the cloud sends a segment that some device does not have
    return own


def _inputs(task: CohortTask, worker: Worker, segment: str, states: Mapping[str, State]) -> Tensor:
    """Returns a few rows for each of two devices, all different: training data, or what a front makes of them."""
    train = worker.workload.data.train
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[torch.arange(2 * _ROWS) % len(train)]
    with seeds.left_as_found(), seeds.pythons_generators(0), torch.no_grad():  # a data set may draw at random
        inputs: Tensor = train.batch(rows)[0].to(worker.accelerator)
        if segment == "back":
            front = worker.segments["front"]
            front.hold(_start(task, worker, states, "front"))
            inputs = front.module(inputs)
    return inputs


def _width(stacks: Sequence[Stack], rows: int) -> int:
    """Returns how many devices a stack may have at most, of which so many rows are kept."""
    return max(_LEAST, min(_MOST, _BYTES // max(1, sum(stack.bytes_of(rows) for stack in stacks))))
