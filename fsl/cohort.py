"""One round of one cohort in one process: device after device, in lockstep only where the trainer needs it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fsl.batches import BatchPlan, load_batches, plan_batches
from fsl.codecs import Codec
from fsl.device import Device, DeviceBench
from fsl.edge import EdgeServer, Session
from fsl.errors import ConfigError, DeviceError, FslError, StepError
from fsl.learner import Learner, OptimizerRecipe
from fsl.plan import CohortTask, DeviceTask, RoundPlan, Spec
from fsl.seeds import Stream
from fsl.states import DeviceStates, Layout, State, Total, WeightedSum
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
    """What a cohort's round leaves: totals by segment, a report per device, and counts for the strategy's metrics."""

    totals: Mapping[str, Total]
    reports: tuple[DeviceReport, ...]
    figures: Mapping[str, int]


class Cohort:
    """The devices that one edge trains together in one round, and that edge."""

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]):
        assert plan.trainer is not None
        self.task = task
        self.plan = plan
        self.worker = worker
        self.states = states
        self.on_device = {name: segment for name, segment in worker.segments.items() if name in ("front", "head")}
        self.recipe = OptimizerRecipe(plan.optimizer, worker.workload.allowed)
        self.up, self.down = (build_codec(path, worker) for path in (plan.up, plan.down))
        self.tasks = {task.device: task for task in task.devices}
        self.totals = {name: new_total(segment.layout, plan) for name, segment in self.on_device.items()}
        self.relayed: dict[str, State] = {name: states[name] for name in self.on_device if name in states}
        self.device_kind = locate_allowed(plan.device.target, worker.workload.allowed)
        self.edge = EdgeServer(task.edge, self._trainer(plan.trainer), self.up, self.down)
        back = worker.segments["back"]
        bench = EdgeBench(
            plan.seed,
            plan.round,
            back,
            worker.workload.objective,
            self.recipe,
            plan.learning_rates["back"],
            self._kept_back,
            self._keep_back,
            partial(new_total, back.layout, plan),
        )
        self.edge.begin(bench, states["back"])

    def run(self) -> CohortResult:
        """Train every device of the cohort once."""
        trainer = self.edge.trainer
        devices = sorted(self.tasks)
        groups = [devices] if trainer.lockstep else [[device] for device in trainer.arrange(devices)]
        reports = [report for group in groups for report in self._run_group(group)]
        totals: dict[str, Total] = {"back": self.edge.result()}
        if self.plan.fronts == "relayed":
            for name, state in self.relayed.items():
                self.totals[name].add(state, sum(r.samples for r in reports))
        if self.plan.fronts != "private":
            totals |= self.totals
        return CohortResult(totals, tuple(sorted(reports, key=lambda r: r.device)), self.edge.figures())

    def _trainer(self, spec: Spec) -> EdgeTrainer:
        trainer = locate_allowed(spec.target, self.worker.workload.allowed)(**spec.kwargs)
        if not isinstance(trainer, EdgeTrainer):
            raise ConfigError(f"{spec.target} is not an EdgeTrainer")
        return trainer

    def _run_group(self, ids: list[int]) -> Iterable[DeviceReport]:
        rows = {device: self.worker.workload.partition.indices(device) for device in ids}
        batches = {i: plan_batches(rows[i], self.plan, i, self.worker.skip_single) for i in ids}
        devices = [self._open(i, batches[i], len(rows[i])) for i in ids]
        train(devices, self.edge, self.plan)
        for device in devices:
            weight = len(rows[device.device])
            self._close(device, weight)
            session = self.edge.close(device.device)
            yield self._report(session, weight, batches[device.device].skipped)

    def _open(self, device: int, batches: BatchPlan, weight: int) -> Device:
        plan, worker = self.plan, self.worker
        learners = {name: segment.borrow(self.recipe) for name, segment in self.on_device.items()}
        for name, learner in learners.items():
            kept = self._load_kept(f"{name}s/{device}", self.tasks[device])
            learner.begin(self._starting_state(name, device), plan.learning_rates[name], kept)
        self.edge.open(device, weight)
        bench = DeviceBench(
            device,
            load_batches(
                batches, worker.workload.data.train, worker.workload.augmentation, plan, device, worker.accelerator
            ),
            learners["front"],
            learners.get("head"),
            worker.workload.objective,
            self._noise("front", device),
            self._noise("head", device),
            self.up,
            self.down,
        )
        kind = self.device_kind(bench, **plan.device.kwargs)
        if not isinstance(kind, Device):
            raise ConfigError(f"{plan.device.target} is not a Device")
        return kind

    def _noise(self, segment: str, device: int) -> Stream:
        return Stream(self.plan.seed, "forward", segment=segment, device=device, round=self.plan.round)

    def _starting_state(self, name: str, device: int) -> State:
        if self.plan.fronts == "private":
            private = load_private(self.worker, name, self.tasks[device])
            if private is not None:
                return private
        start = (self.relayed if self.plan.fronts == "relayed" else self.states).get(name)
        if start is None:
            raise ConfigError(f"device {device} has no {name} yet, and the round's message brought none")
        return start

    def _close(self, device: Device, weight: int) -> None:
        task = self.tasks[device.device]
        learners = {"front": device.bench.front, "head": device.bench.head}
        for name, segment in self.on_device.items():
            learner = learners[name]
            assert learner is not None
            state = learner.state()
            if self.plan.fronts == "averaged":
                self.totals[name].add(state, weight, device.device)
            elif self.plan.fronts == "relayed":
                self.relayed[name] = state.clone()
            else:
                tensors = segment.layout.unpack(state)
                self.worker.store.save(f"{name}s/{task.device}", self.plan.round, tensors, (task.version, task.saved))
            self._keep(f"{name}s/{device.device}", learner, task)
            segment.give_back(learner)

    def _report(self, session: Session, samples: int, skipped: int) -> DeviceReport:
        model_bytes = 2 * sum(segment.layout.bytes for segment in self.on_device.values())
        return DeviceReport(
            session.device,
            samples,
            session.examples,
            session.step,
            skipped,
            session.loss_sum(),
            session.up_bytes,
            session.down_bytes,
            0 if self.plan.fronts == "private" else model_bytes,
        )

    # Optimizer states that are kept from round to round. An edge's trainer names the owner: a device, or the edge.

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
            for reply in edge.step(packets) if packets else edge.flush():
                device, step = by_id[reply.device], reply.step
                device.backward(reply)
            if not packets:
                break
        for device in devices:
            device.finish()
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


def new_total(layout: Layout, plan: RoundPlan) -> Total:
    """Where the devices' states of a segment go: into a sum, or side by side if the cloud asks for each."""
    return DeviceStates(layout) if plan.one_by_one else WeightedSum(layout)


def load_private(worker: Worker, segment: str, task: DeviceTask) -> State | None:
    """A device's private front or head of the generation that counts; None before its first round."""
    tensors = worker.store.load(f"{segment}s/{task.device}", task.version)
    return None if tensors is None else worker.segments[segment].layout.pack(tensors, worker.accelerator)


def build_codec(path: str, worker: Worker) -> Codec:
    """The codec that a plan names."""
    codec = locate_allowed(path, worker.workload.allowed)()
    if not isinstance(codec, Codec):
        raise ConfigError(f"{path} is not a Codec")
    return codec
