"""One edge in one round: its server with the plan's trainer, and the optimizer states that it keeps."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from fsl.codecs.codec_maker import codec_maker
from fsl.importing.spec import Spec
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.round.edge_server import EdgeServer
from fsl.round.kept_states import keep, load_kept, new_total
from fsl.round.round_privacy import edge_objective, lender, protected, reported_batch_size
from fsl.round.trainer_memory import TrainerMemory
from fsl.round.unusable import limit_of
from fsl.round.upper_side import upper_server
from fsl.round.workload import Worker
from fsl.segments.finite import UNUSABLE
from fsl.segments.learner import Learner
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.states import State
from fsl.split.cutting import refuse_tail
from fsl.split.placing import TOP, refuse_top
from fsl.trainers import EdgeBench, EdgeTrainer
from fsl.trainers.remote_tails import RemoteTails


class EdgeSide:
    """One edge in one round: its server with the plan's trainer, and the optimizer states that it keeps."""

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]) -> None:
        assert plan.trainer is not None
        tails, top = "tail" in worker.chain, TOP in worker.chain
        self.task = task
        self.plan = plan
        self.worker = worker
        self.tasks = {task.device: task for task in task.devices}
        up, down = (codec_maker(spec, worker.workload.allowed) for spec in (plan.up, plan.down))
        trainer = protected(self._trainer(plan.trainer), plan)
        if tails and not trainer.tails:
            refuse_tail(worker.chain, f"{type(trainer).__name__} trains")
        if not trainer.hops:
            refuse_top(worker.chain, f"{type(trainer).__name__} trains")
        memory = TrainerMemory(plan, worker)
        public_reason = UNUSABLE if plan.privacy is not None and plan.privacy.private else None
        checked = limit_of(worker, plan, "back") is not None
        self.server = EdgeServer(
            task.edge,
            trainer,
            up,
            down,
            reported_batch_size=reported_batch_size(plan),
            memory=memory,
            public_reason=public_reason,
            checked=checked,
            allowed=worker.workload.allowed,
            shared=worker.segments["front"].shared,
        )
        if top:
            self.server.above = upper_server(task, plan, worker, states)
        back, objective = worker.segments["back"], edge_objective(worker.workload.objective, plan)
        if tails or top:
            objective = RemoteTails(self.server.ask_tails if tails else self.server.ask_above)
        bench = EdgeBench(
            seed=plan.seed,
            round=plan.round,
            back=back,
            objective=objective,
            optimizer=OptimizerRecipe(plan.optimizer, worker.workload.allowed),
            learning_rate=plan.learning_rates["back"],
            kept=self._kept,
            keep=self._keep,
            total=partial(new_total, back.layout, plan),
            lender=lender(plan, "back", worker.workload, task.edge),
            loss_limit=limit_of(worker, plan, "back"),
        )
        self.server.begin(bench, states["back"])

    def _trainer(self, spec: Spec) -> EdgeTrainer:
        trainer: EdgeTrainer = spec.build(self.worker.workload.allowed, EdgeTrainer)
        return trainer

    def welcome(self, task: DeviceTask) -> None:
        """Prepare for a device that may come from another edge; `task` names its kept states' generations."""
        self.tasks[task.device] = task

    # The trainer names the owner of an optimizer state that it keeps: a device, or the edge.

    def _kept(self, owner: str) -> Mapping[str, Tensor] | None:
        return load_kept(self.worker, self.plan, f"backs/{owner}", self._owner_task(owner))

    def _keep(self, owner: str, learner: Learner) -> None:
        keep(self.worker, self.plan, f"backs/{owner}", learner, self._owner_task(owner))

    def _owner_task(self, owner: str) -> DeviceTask | CohortTask:
        kind, _, number = owner.partition("-")
        return self.tasks[int(number)] if kind == "device" else self.task
