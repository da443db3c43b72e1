"""The control: devices train the whole model, without a cut and without an edge (FedAvg's device half)."""

from collections.abc import Mapping

from torch import Tensor

from fsl.batches import load_batches, plan_batches
from fsl.cohort import device_error
from fsl.edge import weighted_loss
from fsl.errors import FslError
from fsl.learner import OptimizerRecipe, dump_optimizer, load_optimizer, set_learning_rate
from fsl.plan import CohortTask, DeviceTask, RoundPlan
from fsl.reports import CohortResult, DeviceReport
from fsl.seeds import DEFAULT_GENERATOR, Stream, reseed
from fsl.sides import new_total
from fsl.states import Replica, State
from fsl.workload import Worker


class UnsplitCohort:
    """Devices that train the whole model one after another, with one optimizer over all of its parameters.

    The segments run behind each other in one graph. Each reseeds its random layers as it does in split training, so
    that both can be compared to the bit.
    """

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]):
        self.task = task
        self.plan = plan
        self.worker = worker
        self.states = states
        self.segments = list(worker.chain.values())
        self.replicas = [Replica(s.layout, worker.accelerator) for s in self.segments]
        parameters = [p for replica in self.replicas for p in replica.parameters]
        self.optimizer = OptimizerRecipe(plan.optimizer, worker.workload.allowed).build(parameters)
        set_learning_rate(self.optimizer, plan.learning_rates[self.segments[0].name])

    def run(self) -> CohortResult:
        """Train every device once; the totals hold n_k * w_k of every segment."""
        totals = {s.name: new_total(s.layout, self.plan) for s in self.segments}
        reports = []
        for task in self.task.devices:
            reports.append(self._train(task))
            for segment, replica in zip(self.segments, self.replicas):
                totals[segment.name].add(replica.collect(), reports[-1].samples, task.device)
        return CohortResult(totals, tuple(reports), {})

    def _train(self, task: DeviceTask) -> DeviceReport:
        plan, workload, device = self.plan, self.worker.workload, task.device
        rows = workload.partition.indices(device)
        batches = plan_batches(rows, plan, device, self.worker.skip_single)
        for segment, replica in zip(self.segments, self.replicas):
            replica.load(self.states[segment.name])
            segment.install(replica)
        owner = f"optimizers/devices/{device}"
        load_optimizer(self.optimizer, None if plan.reset_optimizer else self.worker.store.load(owner, task.version))
        noises = [Stream(plan.seed, "forward", segment=s.name, device=device, round=plan.round) for s in self.segments]
        losses: list[Tensor] = []
        loader = load_batches(
            batches, workload.data.train, workload.augmentation, plan, device, self.worker.accelerator
        )
        try:
            for inputs, targets in loader:
                losses.append(self._step(inputs, targets, [noise.at(len(losses)) for noise in noises]))
        except FslError:
            raise
        except Exception as error:
            raise device_error(plan, device, len(losses), error) from error
        if not plan.reset_optimizer:
            self.worker.store.save(owner, plan.round, dump_optimizer(self.optimizer), (task.version, task.saved))
        sizes = [len(r) for r in batches.rows]
        model_bytes = 2 * sum(s.layout.bytes for s in self.segments)
        loss = weighted_loss(losses, sizes)
        return DeviceReport(
            device,
            len(rows),
            sum(sizes),
            len(sizes),
            batches.skipped,
            loss,
            up_bytes=0,
            down_bytes=0,
            model_bytes=model_bytes,
        )

    def _step(self, inputs: Tensor, targets: Tensor, noises: list[int]) -> Tensor:
        values = inputs
        for segment, noise in zip(self.segments, noises):
            with DEFAULT_GENERATOR:
                reseed(noise, segment.accelerator)
                values = segment.module(values)
        loss = self.worker.workload.objective.loss(values, targets)
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
