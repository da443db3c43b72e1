"""One round of one cohort in one process: device after device, in lockstep only where the trainer needs it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fsl.batches import BatchPlan, load_batches, plan_batches
from fsl.codecs import Codec
from fsl.device import Device
from fsl.edge import EdgeServer, Session
from fsl.errors import ConfigError, DeviceError, FslError, StepError
from fsl.learner import Learner, OptimizerRecipe
from fsl.plan import CohortTask, DeviceTask, RoundPlan
from fsl.seeds import Stream
from fsl.states import State, WeightedSum
from fsl.targets import locate_allowed
from fsl.trainers import EdgeBench, EdgeTrainer
from fsl.workload import Worker


@dataclass(frozen=True)
class DeviceReport:
    """One device's round in figures; sums, never means."""

    device: int
    samples: int  # n_k, what the device holds
    examples: int  # rows trained on
    steps: int
    skipped: int  # rows left out because a batch of one cannot be normalised
    loss: float  # summed over rows
    up_bytes: int
    down_bytes: int
    model_bytes: int


@dataclass(frozen=True)
class CohortResult:
    """What a cohort's round leaves: weighted sums by segment, and a report per device."""

    sums: Mapping[str, WeightedSum]
    reports: tuple[DeviceReport, ...]


class Cohort:
    """The devices that one edge trains together in one round, and that edge."""

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]):
        assert plan.trainer is not None
        self.task = task
        self.plan = plan
        self.worker = worker
        self.front, self.back = worker.segments["front"], worker.segments["back"]
        self.recipe = OptimizerRecipe(plan.optimizer, worker.workload.allowed)
        self.up, self.down = (build_codec(path, worker) for path in (plan.up, plan.down))
        self.tasks = {task.device: task for task in task.devices}
        self.fronts = WeightedSum(self.front.layout)
        self.relayed: State | None = states.get("front")
        self.initial_front = states.get("front")
        trainer = locate_allowed(plan.trainer.target, worker.workload.allowed)(**plan.trainer.kwargs)
        if not isinstance(trainer, EdgeTrainer):
            raise ConfigError(f"{plan.trainer.target} is not an EdgeTrainer")
        self.edge = EdgeServer(task.edge, trainer, self.up, self.down)
        bench = EdgeBench(
            plan.seed,
            plan.round,
            self.back,
            worker.workload.objective,
            self.recipe,
            plan.learning_rates["back"],
            self._kept_back,
            self._keep_back,
        )
        self.edge.begin(bench, states["back"])

    def run(self) -> CohortResult:
        """Train every device of the cohort once."""
        trainer = self.edge.trainer
        devices = sorted(self.tasks)
        groups = [devices] if trainer.lockstep else [[device] for device in trainer.arrange(devices)]
        reports = [report for group in groups for report in self._run_group(group)]
        if self.plan.fronts == "relayed" and self.relayed is not None:
            self.fronts.add(self.relayed, sum(r.samples for r in reports))
        sums = {"back": self.edge.result()}
        if self.plan.fronts != "private":
            sums["front"] = self.fronts
        return CohortResult(sums, tuple(sorted(reports, key=lambda r: r.device)))

    def _run_group(self, ids: list[int]) -> Iterable[DeviceReport]:
        rows = {device: self.worker.workload.partition.indices(device) for device in ids}
        batches = {i: plan_batches(rows[i], self.plan, i, self.worker.skip_single) for i in ids}
        devices = [self._open(i, batches[i]) for i in ids]
        train(devices, self.edge, self.plan)
        for device in devices:
            weight = len(rows[device.device])
            self._close_front(device, weight)
            session = self.edge.close(device.device, weight)
            yield self._report(session, weight, batches[device.device].skipped)

    def _open(self, device: int, batches: BatchPlan) -> Device:
        plan, workload = self.plan, self.worker.workload
        front = self.front.borrow(self.recipe)
        front.begin(self._starting_front(device), plan.learning_rates["front"], self._kept(f"fronts/{device}", device))
        self.edge.open(device)
        examples = load_batches(
            batches, workload.data.train, workload.augmentation, plan, device, self.worker.accelerator
        )
        noise = Stream(plan.seed, "forward", segment="front", device=device, round=plan.round)
        return Device(device, examples, front, noise, self.up, self.down)

    def _starting_front(self, device: int) -> State:
        if self.plan.fronts == "private":
            private = load_private_front(self.worker, self.tasks[device])
            if private is not None:
                return private
        start = self.relayed if self.plan.fronts == "relayed" else self.initial_front
        if start is None:
            raise ConfigError(f"device {device} has no front yet, and the round's message brought none")
        return start

    def _close_front(self, device: Device, weight: int) -> None:
        state = device.front.state()
        if self.plan.fronts == "averaged":
            self.fronts.add(state, weight)
        elif self.plan.fronts == "relayed":
            self.relayed = state.clone()
        else:
            task = self.tasks[device.device]
            tensors = self.front.layout.unpack(state)
            self.worker.store.save(f"fronts/{task.device}", self.plan.round, tensors, (task.version, task.saved))
        self._keep(f"fronts/{device.device}", device.front, self.tasks[device.device])
        self.front.give_back(device.front)

    def _report(self, session: Session, samples: int, skipped: int) -> DeviceReport:
        model_bytes = 0 if self.plan.fronts == "private" else 2 * self.front.layout.bytes
        return DeviceReport(
            session.device,
            samples,
            session.examples,
            session.step,
            skipped,
            session.loss_sum(),
            session.up_bytes,
            session.down_bytes,
            model_bytes,
        )

    # Optimizer states that are kept from round to round. An edge's trainer names the owner: a device, or the edge.

    def _kept(self, owner: str, device: int) -> Mapping[str, Tensor] | None:
        return self._load_kept(owner, self.tasks[device])

    def _kept_back(self, owner: str) -> Mapping[str, Tensor] | None:
        return self._load_kept(f"backs/{owner}", self._owner_task(owner))

    def _keep_back(self, owner: str, learner: Learner) -> None:
        self._keep(f"backs/{owner}", learner, self._owner_task(owner))

    def _owner_task(self, owner: str) -> DeviceTask | CohortTask:
        kind, _, number = owner.partition("-")
        return self.tasks[int(number)] if kind == "device" else self.task

    def _load_kept(self, owner: str, task: DeviceTask | CohortTask) -> Mapping[str, Tensor] | None:
        if self.plan.reset_optimizer:
            return None
        return self.worker.store.load(f"optimizers/{owner}", task.version)

    def _keep(self, owner: str, learner: Learner, task: DeviceTask | CohortTask) -> None:
        if not self.plan.reset_optimizer:
            tensors = learner.optimizer_state()
            self.worker.store.save(f"optimizers/{owner}", self.plan.round, tensors, (task.version, task.saved))


def train(devices: list[Device], edge: EdgeServer, plan: RoundPlan) -> None:
    """The training loop: every device uploads a step, the edge answers, until all batches are used up."""
    by_id = {device.device: device for device in devices}
    device, step = devices[0], 0
    try:
        while True:
            packets = []
            for device in devices:
                step = device.step
                if (packet := device.forward()) is not None:
                    packets.append(packet)
            if not packets:
                return
            for reply in edge.step(packets):
                device, step = by_id[reply.device], reply.step
                device.backward(reply)
    except StepError as error:
        raise device_error(plan, error.device, error.step, error.__cause__ or error) from error.__cause__
    except FslError:
        raise
    except Exception as error:
        raise device_error(plan, device.device, step, error) from error


def device_error(plan: RoundPlan, device: int, step: int, error: BaseException) -> DeviceError:
    """The failure of a device, with its place in the run."""
    where = f"run {plan.run}, round {plan.round}, device {device}, step {step}"
    return DeviceError(f"{where}: {type(error).__name__}: {error}")


def load_private_front(worker: Worker, task: DeviceTask) -> State | None:
    """A device's private front of the generation that counts; None before its first round."""
    tensors = worker.store.load(f"fronts/{task.device}", task.version)
    return None if tensors is None else worker.segments["front"].layout.pack(tensors, worker.accelerator)


def build_codec(path: str, worker: Worker) -> Codec:
    """The codec that a plan names."""
    codec = locate_allowed(path, worker.workload.allowed)()
    if not isinstance(codec, Codec):
        raise ConfigError(f"{path} is not a Codec")
    return codec
