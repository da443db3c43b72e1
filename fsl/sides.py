"""The two sides of the cut in one round: what a node that hosts devices does, and what one that hosts an edge does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fsl.batches import BatchPlan, load_batches, plan_batches
from fsl.codecs.spec import codec_maker
from fsl.device import Device, DeviceBench
from fsl.edge import EdgeServer
from fsl.errors import ConfigError, LostError
from fsl.finite import UNUSABLE, refuse_states
from fsl.judged import limit_of, refuse_optimizer
from fsl.learner import Learner, OptimizerRecipe
from fsl.memory import TrainerMemory
from fsl.objective import Objective
from fsl.plan import CohortTask, DeviceTask, RoundPlan, Spec
from fsl.privacy.client import shorten, update_square
from fsl.privacy.device import device_privacy
from fsl.privacy.labels import CorrectedCrossEntropy, Relabelling, draw_shifts
from fsl.privacy.noise import noise_source
from fsl.privacy.rows import refuse_unmeasured
from fsl.privacy.settings import SegmentPrivacy
from fsl.seeds import Stream
from fsl.split import refuse_tail
from fsl.states import DeviceStates, Layout, State, Total, WeightedSum
from fsl.targets import locate_allowed
from fsl.trainers import EdgeBench, EdgeTrainer
from fsl.workload import Worker


@dataclass(frozen=True)
class DeviceCopy:
    """A device after so many steps: each segment's values, its optimizer's state, and its changed transients."""

    step: int
    learners: Mapping[str, tuple[State, Mapping[str, Tensor], Mapping[str, Tensor]]]


class DeviceSide:
    """Devices of one round on this node: their segments (front, and a head where they have a loss of their own).

    With `relayed` fronts `relayed` is what the next device starts from.
    """

    def __init__(
        self, tasks: Sequence[DeviceTask], plan: RoundPlan, worker: Worker, states: Mapping[str, State]
    ) -> None:
        refuse_tail(worker.chain, "this round trains")  # also where a strategy of the user's does not ask
        refuse_unmeasured(worker, plan)
        self.plan = plan
        self.worker = worker
        self.states = states
        self.tasks = {task.device: task for task in tasks}
        self.segments = {name: segment for name, segment in worker.segments.items() if name in ("front", "head")}
        self.recipe = OptimizerRecipe(plan.optimizer, worker.workload.allowed)
        self.up, self.down = (codec_maker(spec, worker.workload.allowed) for spec in (plan.up, plan.down))
        self.totals = {name: new_total(segment.layout, plan) for name, segment in self.segments.items()}
        self.relayed: dict[str, State] = {name: states[name] for name in self.segments if name in states}
        self.batches: dict[int, BatchPlan] = {}
        whole = None if plan.privacy is None else plan.privacy.client
        self.clip = None if whole is None else whole.clip  # of a device's whole update
        self.told_rows = told_rows(plan)
        self._kind = locate_allowed(plan.device.target, worker.workload.allowed, Device)

    def samples(self, device: int) -> int:
        """n_k, what the device holds."""
        return len(self.worker.workload.partition.indices(device))

    def weight(self, device: int) -> float:
        """What a device counts in averages: n_k, or all alike where devices are protected as a whole."""
        return float(self.samples(device)) if self.clip is None else 1.0

    def open(self, device: int) -> Device:
        """Give a device its batches and its segments, as they are at the beginning of its round."""
        plan, worker = self.plan, self.worker
        rows = worker.workload.partition.indices(device)
        secure = worker.workload.secure
        self.batches[device] = batches = plan_batches(rows, plan, device, worker.skip_single, secure)
        learners = {name: segment.borrow(self.recipe, private(plan, name)) for name, segment in self.segments.items()}
        for name, learner in learners.items():
            kept = load_kept(worker, plan, f"{name}s/{device}", self.tasks[device])
            learner.begin(self._starting_state(name, device), plan.learning_rates[name], kept)
        bench = DeviceBench(
            device,
            load_batches(
                batches,
                worker.workload.data.train,
                worker.workload.augmentation,
                plan,
                device,
                worker.accelerator,
                relabelling(worker, plan, device, rows),
            ),
            learners["front"],
            learners.get("head"),
            worker.workload.objective,
            self._noise("front", device),
            self._noise("head", device),
            self.up(),
            self.down(),
            device_privacy(plan, device, secure),
            limit_of(worker, plan),
        )
        opened = self._kind(bench, **plan.device.kwargs)
        if not isinstance(opened, Device):
            raise ConfigError(f"{plan.device.target} is not a Device")
        return opened

    def close(self, device: Device) -> None:
        """A device is done: add its segments to the totals, relay them, or put them away.

        LostError, and nothing of that, where they cannot be used.
        """
        task = self.tasks[device.device]
        self.check(device)
        for name, learner in self._learners(device).items():
            state = learner.state()
            if self.plan.fronts == "averaged" or (self.plan.fronts == "relayed" and self.plan.one_by_one):
                self.totals[name].add(state, self.weight(device.device), device.device)
            if self.plan.fronts == "relayed":
                self.relayed[name] = state.clone()
            elif self.plan.fronts == "private":
                tensors = self.segments[name].layout.unpack(state)
                self.worker.store.save(f"{name}s/{task.device}", self.plan.round, tensors, (task.version, task.saved))
            keep(self.worker, self.plan, f"{name}s/{device.device}", learner, task)
            self.segments[name].give_back(learner)

    def check(self, device: Device) -> None:
        """LostError where what a device has trained, or what its optimizer is to keep, cannot be used."""
        refuse_states(device.device, self.states_of(device), self.plan.privacy is not None)
        if not self.plan.reset_optimizer:
            for name, learner in self._learners(device).items():
                refuse_optimizer(device.device, name, learner, self.plan)

    def abandon(self, device: Device) -> None:
        """A device is lost in the middle of its round: nothing of it is kept."""
        for name, learner in self._learners(device).items():
            self.segments[name].give_back(learner)

    def copy(self, device: Device) -> "DeviceCopy":
        """A device between two of its steps, copied."""
        learners = self._learners(device)
        return DeviceCopy(
            device.step,
            {name: (one.state().clone(), one.optimizer_state(), one.transients()) for name, one in learners.items()},
        )

    def restore(self, device: int, copy: "DeviceCopy") -> Device:
        """Open a device again as it was when it was copied."""
        opened = self.open(device)
        for name, learner in self._learners(opened).items():
            state, optimizer, transients = copy.learners[name]
            learner.begin(state, self.plan.learning_rates[name], optimizer, transients)
        for _ in range(copy.step):
            next(opened.bench.batches)
        opened.step = copy.step
        return opened

    def update_square(self, device: Device) -> float:
        """The squared norm of the update of a device's own segments."""
        return sum(update_square(self.states[name], state) for name, state in self.states_of(device).items())

    def shorten(self, device: Device, square: float) -> None:
        """Clip a device's update, whose squared norm over all segments, the edge's too, is `square`."""
        assert self.clip is not None
        for name, state in self.states_of(device).items():
            shorten(self.states[name], state, square, self.clip)

    def states_of(self, device: Device) -> dict[str, State]:
        """A device's segments as they are now, not copied."""
        return {name: learner.state() for name, learner in self._learners(device).items()}

    @property
    def model_bytes(self) -> int:
        """What of the model travels to a device and back in a round."""
        if self.plan.fronts == "private":
            return 0
        return 2 * sum(segment.layout.bytes for segment in self.segments.values())

    def _learners(self, device: Device) -> dict[str, Learner]:
        both = {"front": device.bench.front, "head": device.bench.head}
        return {name: learner for name, learner in both.items() if learner is not None}

    def _noise(self, segment: str, device: int) -> Stream:
        return Stream(self.plan.seed, "forward", segment=segment, device=device, round=self.plan.round)

    def _starting_state(self, name: str, device: int) -> State:
        if self.plan.fronts == "private":
            private = load_private(self.worker, name, self.tasks[device])
            if private is not None:
                return private
        start = (self.relayed if self.plan.fronts == "relayed" else self.states).get(name)
        if start is None and self.worker.store.restarts.get(f"{name}s/{device}") == 0:
            raise LostError(
                device, f"its {name} is lost on its node; it begins anew from the first one in the next round"
            )
        if start is None:
            raise ConfigError(f"device {device} has no {name} yet, and the round's message brought none")
        return start


class EdgeSide:
    """One edge in one round: its server with the plan's trainer, and the optimizer states that it keeps."""

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]) -> None:
        assert plan.trainer is not None
        refuse_tail(worker.chain, "this round trains")
        self.task = task
        self.plan = plan
        self.worker = worker
        self.tasks = {task.device: task for task in task.devices}
        up, down = (codec_maker(spec, worker.workload.allowed) for spec in (plan.up, plan.down))
        trainer = self._trainer(plan.trainer)
        memory = TrainerMemory(plan, worker)
        told = UNUSABLE if plan.privacy is not None and plan.privacy.private else None
        checked = limit_of(worker, plan, "back") is not None
        self.server = EdgeServer(task.edge, trainer, up, down, told_rows(plan), memory, told, checked)
        back = worker.segments["back"]
        bench = EdgeBench(
            plan.seed,
            plan.round,
            back,
            edge_objective(worker.workload.objective, plan),
            OptimizerRecipe(plan.optimizer, worker.workload.allowed),
            plan.learning_rates["back"],
            self._kept,
            self._keep,
            partial(new_total, back.layout, plan),
            private(plan, "back"),
            worker.workload.secure,
            limit_of(worker, plan, "back"),
        )
        self.server.begin(bench, states["back"])

    def _trainer(self, spec: Spec) -> EdgeTrainer:
        trainer: EdgeTrainer = locate_allowed(spec.target, self.worker.workload.allowed, EdgeTrainer)(**spec.kwargs)
        return trainer

    def welcome(self, task: DeviceTask) -> None:
        """A device may come over from another edge; its kept states are of these generations."""
        self.tasks[task.device] = task

    # The trainer names the owner of an optimizer state that is kept: a device, or the edge.

    def _kept(self, owner: str) -> Mapping[str, Tensor] | None:
        return load_kept(self.worker, self.plan, f"backs/{owner}", self._owner_task(owner))

    def _keep(self, owner: str, learner: Learner) -> None:
        keep(self.worker, self.plan, f"backs/{owner}", learner, self._owner_task(owner))

    def _owner_task(self, owner: str) -> DeviceTask | CohortTask:
        kind, _, number = owner.partition("-")
        return self.tasks[int(number)] if kind == "device" else self.task


def private(plan: RoundPlan, segment: str) -> SegmentPrivacy | None:
    """How a plan has a segment trained privately; None: as ever."""
    return None if plan.privacy is None else plan.privacy.segment(segment, plan.batch_size)


def told_rows(plan: RoundPlan) -> int | None:
    """The rows that a batch is reported to have: the expected ones of Poisson draws, None where it is its own."""
    return plan.batch_size if plan.privacy is not None and plan.privacy.poisson else None


def relabelling(worker: Worker, plan: RoundPlan, device: int, rows: Tensor) -> Relabelling | None:
    """A device's randomized labels; None where it tells the true ones.

    Seeded ones follow from the seed; secure ones are drawn once and stay on the device's disk.
    """
    labels, classes = plan.privacy.labels if plan.privacy is not None else None, worker.workload.data.classes
    if labels is None or plan.trainer is None:
        return None
    if classes is None or classes < 2:
        raise ConfigError("privacy.labels: this device's data have no classes to choose a label from")
    noise = noise_source(worker.workload.secure, plan.seed, "labels", device=device)
    if not worker.workload.secure:
        return Relabelling(rows, draw_shifts(len(rows), classes, labels.epsilon, noise), classes)
    owner = f"labels/{device}/{labels.epsilon:g}"
    kept = worker.store.load(owner, 1) if worker.store.path(owner, 1).exists() else None
    if kept is None:
        kept = {"shifts": draw_shifts(len(rows), classes, labels.epsilon, noise)}
        worker.store.save(owner, 1, kept, (0, 0))
        worker.store.sync()  # before any of them is told
    if len(kept["shifts"]) != len(rows):
        raise ConfigError(
            f"device {device} holds {len(rows)} samples, and labels were drawn for {len(kept['shifts'])}; a data set "
            "that changed needs a folder of its own"
        )
    return Relabelling(rows, kept["shifts"], classes)


def edge_objective(objective: Objective, plan: RoundPlan) -> Objective:
    """What a back minimises: the run's objective, corrected where labels are randomized."""
    labels = plan.privacy.labels if plan.privacy is not None else None
    return CorrectedCrossEntropy(labels.epsilon) if labels is not None and labels.correct else objective


def load_kept(
    worker: Worker, plan: RoundPlan, owner: str, task: DeviceTask | CohortTask
) -> Mapping[str, Tensor] | None:
    """An owner's kept optimizer state of the generation that counts; None where it starts anew."""
    return None if plan.reset_optimizer else worker.store.load(f"optimizers/{owner}", task.version)


def keep(worker: Worker, plan: RoundPlan, owner: str, learner: Learner, task: DeviceTask | CohortTask) -> None:
    """Put an owner's optimizer state away, where the run keeps them; LostError where it cannot be used."""
    if not plan.reset_optimizer:
        refuse_optimizer(getattr(task, "device", None), owner, learner, plan)
        worker.store.save(f"optimizers/{owner}", plan.round, learner.optimizer_state(), (task.version, task.saved))


def new_total(layout: Layout, plan: RoundPlan) -> Total:
    """Where the devices' states of a segment go: into a sum, or side by side if the cloud asks for each."""
    return DeviceStates(layout) if plan.one_by_one else WeightedSum(layout)


def load_private(worker: Worker, segment: str, task: DeviceTask) -> State | None:
    """A device's private front or head of the generation that counts; None before its first round."""
    tensors = worker.store.load(f"{segment}s/{task.device}", task.version)
    return None if tensors is None else worker.segments[segment].layout.pack(tensors, worker.accelerator)
