"""One edge in one round: its server with the plan's trainer, and the optimizer states that it keeps."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from fsl.codecs.codec_maker import codec_maker
from fsl.codecs.cut_codec import CodecDraws
from fsl.importing.spec import Spec
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.round.above import Above
from fsl.round.batches import batches_in_round
from fsl.round.by_cut import ByCut
from fsl.round.cut_views import CutView, CutViews
from fsl.round.edge_server import EdgeServer
from fsl.round.kept_states import keep, load_kept, new_total
from fsl.round.round_privacy import edge_objective, lender, protected, reported_batch_size
from fsl.round.step_rules import lend_by, objective_of, refuse_accumulation, step_rule
from fsl.round.trainer_memory import TrainerMemory
from fsl.round.unusable import limit_of
from fsl.round.upper_side import upper_server
from fsl.round.workload import Worker
from fsl.segments.calling import call
from fsl.segments.finite import UNUSABLE
from fsl.segments.learner import Learner
from fsl.segments.modes import evaluating
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.precision import computing
from fsl.segments.states import State
from fsl.segments.tensor_trees import Values, received
from fsl.split.cutting import refuse_tail
from fsl.split.placing import TOP, refuse_top
from fsl.trainers import EdgeBench, EdgeTrainer
from fsl.trainers.remote_tails import RemoteTails


class EdgeSide:
    """One edge in one round: its server with the plan's trainer, and the optimizer states that it keeps.

    `above`: the server above it, where that is another node's; None: the edge has it beside itself, as in simulation.
    """

    def __init__(
        self,
        task: CohortTask,
        plan: RoundPlan,
        worker: Worker,
        states: Mapping[str, State],
        above: Above | None = None,
    ) -> None:
        assert plan.trainer is not None
        tails, top = "tail" in worker.chain, TOP in worker.chain
        self.task = task
        self.plan = plan
        self.worker = worker
        self.tasks = {task.device: task for task in task.devices}
        self.views = CutViews(worker, states)
        self._most = 0.0  # n_k of the device with the most samples, when the back was first stepped
        up, down = (codec_maker(spec, worker.workload.allowed) for spec in (plan.up, plan.down))
        if self.views.mixed:
            trainer: EdgeTrainer = ByCut(partial(self._trainer, plan.trainer), self._at, self.views.in_pieces)
        else:
            trainer = protected(self._trainer(plan.trainer), plan)
        refuse_accumulation(trainer, plan.control.accumulate)
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
            draws=CodecDraws(plan.seed, round=plan.round),
            shared=lambda device: self._view(device).worker.segments["front"].shared,
        )
        if top:
            self.server.above = above or upper_server(task, plan, worker, states)
        if tails and plan.privacy is not None and plan.privacy.poisson:
            self.server.no_outputs = self._no_outputs
        self.server.begin(self._bench(worker), states["back"])

    def _no_outputs(self, smashed: Values) -> Values:
        """Returns the back's outputs for smashed data without rows, in the shape and dtype of any batch's."""
        assert isinstance(smashed, Tensor)  # where privacy is, one tensor crosses the cut
        back = self.worker.segments["back"].module
        with evaluating(back), torch.no_grad(), computing(self.plan.control.precision, self.worker.accelerator):
            found: Values = received(call(back, smashed.new_zeros(1, *smashed.shape[1:])))[:0]
        return found

    def _view(self, device: int) -> CutView:
        return self.views.at(self.tasks[device].cut if device in self.tasks else 0)

    def _bench(self, worker: Worker) -> EdgeBench:
        """Returns what a trainer works with whose devices' models are cut as this worker's."""
        plan, back = self.plan, worker.segments["back"]
        if "tail" in worker.chain:
            objective = edge_objective(RemoteTails(self.server.ask_tails), plan)
        elif TOP in worker.chain:
            objective = RemoteTails(self.server.ask_above)
        else:
            objective = objective_of(plan, edge_objective(worker.workload.objective, plan), worker.accelerator)
        rule = step_rule(plan, "back", worker, self._batches)
        return EdgeBench(
            seed=plan.seed,
            round=plan.round,
            back=back,
            objective=objective,
            optimizer=OptimizerRecipe(plan.optimizer, worker.workload.allowed),
            learning_rate=plan.learning_rates["back"],
            kept=self._kept,
            keep=self._keep,
            total=partial(new_total, back.layout, plan),
            lender=lend_by(rule, lender(plan, "back", worker.workload, self.task.edge)),
            loss_limit=limit_of(worker, plan, "back"),
        )

    def _at(self, device: int) -> tuple[int, EdgeBench, State]:
        """Returns the cut of a device, with the bench and the back as the round begins that belong to it."""
        view = self._view(device)
        return self.tasks[device].cut, self._bench(view.worker), view.states["back"]

    def _trainer(self, spec: Spec) -> EdgeTrainer:
        trainer: EdgeTrainer = spec.build(self.worker.workload.allowed, EdgeTrainer)
        return trainer

    def welcome(self, task: DeviceTask) -> None:
        """Prepare for a device that may come from another edge; `task` names its kept states' generations."""
        self.tasks[task.device] = task

    def _batches(self, device: int | None) -> int:
        """Returns how many batches a device has in this round; None: the most that any device here has."""
        if device is None:  # as the first step found it: who comes or goes later changes no rate in the middle
            self._most = self._most or self.server.most_samples()
        samples = self._most if device is None else self.server.session(device).weight
        return batches_in_round(int(samples), self.plan, self.worker.skip_single)

    # The trainer names the owner of an optimizer state that it keeps: a device, or the edge.

    def _kept(self, owner: str) -> Mapping[str, Tensor] | None:
        return load_kept(self.worker, self.plan, f"backs/{owner}", self._owner_task(owner))

    def _keep(self, owner: str, learner: Learner) -> None:
        keep(self.worker, self.plan, f"backs/{owner}", learner, self._owner_task(owner))

    def _owner_task(self, owner: str) -> DeviceTask | CohortTask:
        kind, _, number = owner.partition("-")
        return self.tasks[int(number)] if kind == "device" else self.task
