"""Loads and stores what devices and edges keep from round to round, in the generation that counts."""

from collections.abc import Mapping

from torch import Tensor

from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.round.unusable import refuse_optimizer
from fsl.round.workload import Worker
from fsl.segments.learner import Learner
from fsl.segments.states import Layout, State
from fsl.segments.sums import DeviceStates, Total, WeightedSum


def load_kept(
    worker: Worker, plan: RoundPlan, owner: str, task: DeviceTask | CohortTask
) -> Mapping[str, Tensor] | None:
    """Load an owner's optimizer state of the generation that counts; None where it starts anew."""
    return None if plan.reset_optimizer else worker.store.load(f"optimizers/{owner}", task.version)


def keep(worker: Worker, plan: RoundPlan, owner: str, learner: Learner, task: DeviceTask | CohortTask) -> None:
    """Store an owner's optimizer state, where the run keeps them; LostError where it is unusable."""
    if not plan.reset_optimizer:
        refuse_optimizer(getattr(task, "device", None), owner, learner, plan)
        worker.store.save(f"optimizers/{owner}", plan.round, learner.optimizer_state(), (task.version, task.saved))


def new_total(layout: Layout, plan: RoundPlan) -> Total:
    """Returns an empty total of a segment: a sum, or states one by one where the cloud asks for each."""
    return DeviceStates(layout) if plan.one_by_one else WeightedSum(layout)


def load_private(worker: Worker, segment: str, task: DeviceTask) -> State | None:
    """Load a device's private front or head of the generation that counts; None before its first round."""
    tensors = worker.store.load(f"{segment}s/{task.device}", task.version)
    return None if tensors is None else worker.segments[segment].layout.pack(tensors, worker.accelerator)
