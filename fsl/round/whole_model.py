"""Trains the whole model on devices, without a cut and without an edge: FedAvg's device half, the control."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fsl.errors import LostError
from fsl.messages.reports import CohortResult, DeviceReport
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.privacy.clip_rules import joint_factors, rule_named
from fsl.privacy.noise import Draw, StepNoise
from fsl.privacy.settings import SegmentPrivacy
from fsl.privacy.whole_updates import clip_update
from fsl.round.batches import load_batches, plan_batches
from fsl.round.cohort import reported_loss, reported_rows, reported_weight, stepping
from fsl.round.device_weights import device_weight
from fsl.round.kept_states import new_total
from fsl.round.round_privacy import private
from fsl.round.rows import refuse_unmeasured
from fsl.round.sessions import weighted_loss
from fsl.round.step_rules import objective_of, step_rule
from fsl.round.unusable import limit_of, lost_reason
from fsl.round.workload import Worker
from fsl.seeds import DEFAULT_GENERATOR, Stream, reseed
from fsl.segments.calling import call
from fsl.segments.finite import REFUSED, finite, refuse_states, usable
from fsl.segments.labelled_parts import loss_by, told
from fsl.segments.learner import SegmentRuntime, known_of, take_known
from fsl.segments.optimizer import OptimizerRecipe, dump_optimizer, load_optimizer, set_learning_rate
from fsl.segments.states import Replica, State
from fsl.segments.step_control import mean_gradient
from fsl.segments.tensor_trees import Values, received

if TYPE_CHECKING:
    from fsl.privacy.private_learner import Privatizer
    from fsl.round.deadline import Deadline


class WholeModelCohort:
    """Trains the whole model device after device, with one optimizer over all of its parameters.

    The segments run behind each other in one graph. Each reseeds its random layers as in split training, so that both
    agree to the bit.
    """

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]):
        self.task = task
        self.plan = plan
        self.worker = worker
        self.states = states
        self.secure = worker.workload.secure
        refuse_unmeasured(worker, plan)
        self.private = {name: private(plan, name) for name in worker.chain}
        self.segments = [privately(segment, self.private[name]) for name, segment in worker.chain.items()]
        self.labelled = [part for segment in self.segments for part in segment.labelled]
        self.replicas = [Replica(s.layout, worker.accelerator) for s in self.segments]
        self.parameters = [p for replica in self.replicas for p in replica.parameters]
        self.limit = limit_of(worker, plan)
        self.optimizer = OptimizerRecipe(plan.optimizer, worker.workload.allowed).build(self.parameters)
        self.rate = plan.learning_rates[self.segments[0].name]
        set_learning_rate(self.optimizer, self.rate)
        self.batches = 0  # of the present device
        self.rules = [step_rule(plan, s.name, worker, lambda _: self.batches, on_device=True) for s in self.segments]
        self.saver = self.rules[0].saver(self.parameters)
        self.objective = objective_of(plan, worker.workload.objective, worker.accelerator)
        for segment, replica in zip(self.segments, self.replicas):
            segment.install(replica)
        self.privatizers = privatizers(self.segments, self.replicas, self.private, worker.workload.allowed)

    def run(self, deadline: "Deadline | None" = None) -> CohortResult:
        """Train every device once; returns totals with n_k * w_k of every segment.

        Devices that have not finished at the deadline are lost.
        """
        totals = {s.name: new_total(s.layout, self.plan) for s in self.segments}
        reports = []
        lost: dict[int, str] = {}
        for task in self.task.devices:
            try:
                report = self._train(task, deadline)
                protected = self._clip()
                states = {s.name: replica.collect() for s, replica in zip(self.segments, self.replicas)}
                refuse_states(task.device, states)
                self._keep(task)
            except LostError as error:
                lost[task.device] = lost_reason(self.plan, error.reason)
                continue
            reports.append(report)
            for name, state in states.items():
                totals[name].add(state, device_weight(report.samples, protected), task.device)
        return CohortResult(totals=totals if reports else {}, reports=tuple(reports), counts={}, lost=lost)

    def _keep(self, task: DeviceTask) -> None:
        """Store the optimizer's state, where the run keeps it; LostError where it is unusable."""
        if self.plan.reset_optimizer:
            return
        kept = dump_optimizer(self.optimizer) | known_of(self.saver)
        if not finite(kept.values()):
            raise LostError(task.device, "its optimizer's state is not finite; its training has diverged")
        owner = f"optimizers/devices/{task.device}"
        self.worker.store.save(owner, self.plan.round, kept, (task.version, task.saved))

    def _clip(self) -> bool:
        """Clip the update under device-level privacy; returns whether there is any."""
        if self.plan.privacy is None or self.plan.privacy.client is None:
            return False
        starts = [self.states[segment.name] for segment in self.segments]
        clip_update(starts, [replica.collect() for replica in self.replicas], self.plan.privacy.client.clip)
        return True

    def _train(self, task: DeviceTask, deadline: "Deadline | None") -> DeviceReport:
        plan, workload, device = self.plan, self.worker.workload, task.device
        rows = workload.partition.indices(device)
        batches = plan_batches(rows, plan, device, self.worker.skip_single, self.secure)
        self.batches = len(batches.rows)
        self._drop()  # what a device that was lost has left of a step
        for segment, replica in zip(self.segments, self.replicas):
            replica.load(self.states[segment.name])
            segment.install(replica)
        owner = f"optimizers/devices/{device}"
        kept = {} if plan.reset_optimizer else dict(self.worker.store.load(owner, task.version) or {})
        known = take_known(kept)
        load_optimizer(self.optimizer, kept)
        if self.saver is not None:
            self.saver.resume(known)
        streams = [Stream(plan.seed, "forward", segment=s.name, device=device, round=plan.round) for s in self.segments]
        losses: list[Tensor] = []
        counts: list[float] = []
        loader = load_batches(
            batches, workload.data.train, workload.augmentation, plan, device, self.worker.accelerator
        )
        with stepping(plan) as here:
            here(device, 0)
            for inputs, targets in loader:
                at = [stream.at(len(losses)) for stream in streams]
                noise = [self._noise(name).of(device, len(losses)) for name in self.privatizers]
                counts.append(workload.objective.weight(targets))
                losses.append(self._step(inputs, targets, at, noise, device, len(losses)))
                here(device, len(losses))
                if deadline is not None and deadline.left() <= 0:
                    raise LostError(device, deadline.reason)
        sizes = [len(r) for r in batches.rows]
        model_bytes = 2 * sum(s.layout.bytes for s in self.segments)
        loss = reported_loss(plan, weighted_loss(losses, counts))
        return DeviceReport(
            device=device,
            samples=len(rows),
            examples=reported_rows(plan, sum(sizes), len(sizes)),
            steps=len(sizes),
            skipped=batches.skipped,
            loss_sum=loss,
            loss_weight=reported_weight(plan, sum(counts), len(sizes)),
            up_bytes=0,
            down_bytes=0,
            model_bytes=model_bytes,
        )

    def _noise(self, segment: str) -> StepNoise:
        return StepNoise(self.secure, self.plan.seed, self.plan.round, segment)

    def _step(
        self, inputs: Values, targets: Tensor, layer_seeds: list[int], noise: list[Draw], device: int, step: int
    ) -> Tensor:
        values: Any = inputs
        loss = inputs.new_zeros(()) if isinstance(inputs, Tensor) else torch.zeros((), device=self.worker.accelerator)
        if len(inputs):
            loss_of = loss_by(self.objective, targets)
            with nullcontext() if self.saver is None else self.saver.saving(), told(self.labelled, loss_of):
                for segment, rule, layer_seed in zip(self.segments, self.rules, layer_seeds):
                    with DEFAULT_GENERATOR, rule.computing(segment.accelerator):
                        reseed(layer_seed, segment.accelerator)
                        values = received(call(segment.module, values))
            loss = loss_of(values)
            loss.backward()
            if self.limit is not None and not usable([loss], [p.grad for p in self.parameters], self.limit):
                raise LostError(device, REFUSED)
        privatize(list(self.privatizers.values()), noise)
        gathered = self.rules[0].gathered(step, device)
        if self.optimizer is not None and gathered:
            set_learning_rate(self.optimizer, self.rules[0].rate(self.rate, step, device))
            mean_gradient(self.parameters, self.rules[0].divisor(gathered))
            for rule, replica in zip(self.rules, self.replicas):  # each segment for itself, as in split training
                rule.clip(replica.parameters)
            self.optimizer.step()
            if self.saver is not None:
                self.saver.stepped(self.optimizer)
            self._drop()
        return loss.detach()

    def _drop(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def privately(segment: SegmentRuntime, privacy: SegmentPrivacy | None) -> SegmentRuntime:
    """Returns a copy of a segment for Opacus's hooks, since another cohort may use the original."""
    if privacy is None:
        return segment
    from fsl.privacy.private_learner import hookable

    module = segment.copied()
    hookable(module)
    return SegmentRuntime(segment.name, module, segment.accelerator)


def privatizers(
    segments: Sequence[SegmentRuntime],
    replicas: Sequence[Replica],
    private: Mapping[str, SegmentPrivacy | None],
    allowed: tuple[str, ...],
) -> dict[str, "Privatizer"]:
    """Returns, by name, the objects that make each segment's step private."""
    found = {}
    for segment, replica in zip(segments, replicas):
        privacy = private[segment.name]
        if privacy is not None and replica.parameters:
            from opacus.grad_sample import GradSampleHooks

            from fsl.privacy.private_learner import Privatizer

            GradSampleHooks(segment.module)
            rule = None if privacy.rule is None else rule_named(privacy.rule, allowed)
            found[segment.name] = Privatizer(replica.parameters, privacy, rule, segment.layout.trained)
    return found


def privatize(privatizers: Sequence["Privatizer"], noise: Sequence[Draw]) -> None:
    """Replace every segment's gradient by a private one: clipped together where the clip is joint."""
    factors = None
    if privatizers and privatizers[0].privacy.joint:
        zero, norms = torch.zeros(()), [one.norms() for one in privatizers]
        factors = joint_factors(privatizers[0].privacy.clip, norms[0], norms[1] if len(norms) > 1 else zero)
    for one, draw in zip(privatizers, noise):
        one.privatize(draw, factors=factors)
