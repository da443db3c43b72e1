"""Edge trainers: the rule by which an edge turns a step's messages into replies and back updates."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from fsl import seeds
from fsl.errors import ConfigError, StepError
from fsl.learner import Learner, OptimizerRecipe, SegmentRuntime
from fsl.messages import Reply, Upload
from fsl.objective import Objective
from fsl.states import State, WeightedSum

T = TypeVar("T")


@dataclass(frozen=True)
class EdgeBench:
    """What an edge gives its trainer to work with in one round."""

    seed: int
    round: int
    back: SegmentRuntime
    objective: Objective
    optimizer: OptimizerRecipe
    learning_rate: float
    kept: Callable[[str], Mapping[str, Tensor] | None]  # an owner's kept optimizer state, None if it starts anew
    keep: Callable[[str, Learner], None]  # put an owner's optimizer state away, where the run keeps them

    def noise(self, device: int) -> seeds.Stream:
        """The stream that the back's random layers draw from in a device's steps."""
        return seeds.Stream(self.seed, "forward", segment=self.back.name, device=device, round=self.round)


@dataclass(frozen=True)
class Snapshot:
    """What must follow a device that moves to another edge; it shares no memory with the trainer's state."""

    back: State | None
    optimizer: Mapping[str, Tensor]
    examples: int


class EdgeTrainer(ABC):
    """One algorithm's edge half, for one cohort in one round.

    `lockstep`: a step waits for an upload of every live device; otherwise each upload is served as it comes.
    `divisible`: a cohort may be divided over nodes without changing the result.
    """

    lockstep: bool = False
    divisible: ClassVar[bool] = False

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round from the back that the cloud sent."""
        self.bench = bench
        self.edge = edge
        self.back = back
        self.sum = WeightedSum(bench.back.layout)

    def arrange(self, devices: Sequence[int]) -> Sequence[int]:
        """The order in which devices train where they train one after another."""
        return devices

    @abstractmethod
    def open(self, device: int) -> None:
        """A device's session begins."""

    @abstractmethod
    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Answer the uploads of one step: of one device, or of all live ones in lockstep, in order of device id."""

    @abstractmethod
    def close(self, device: int, weight: float) -> None:
        """A device's session ends; it stands for `weight` (its n_k) in the round's averages."""

    @abstractmethod
    def result(self) -> WeightedSum:
        """The backs of this round, weighted."""

    def snapshot(self, device: int) -> Snapshot:
        """What must follow a device that moves away, copied."""
        raise ConfigError(f"{type(self).__name__} cannot hand over a device in the middle of a round")

    def adopt(self, device: int, snapshot: Snapshot) -> None:
        """Take over a device that another edge handed over."""
        raise ConfigError(f"{type(self).__name__} cannot take over a device in the middle of a round")


def train_back(learner: Learner, objective: Objective, upload: Upload, noise: int) -> Reply:
    """One step of a back on one device's upload: forward, loss, backward, optimizer step.

    The cut gradient is that of the weights before the step. The back runs on a clone of the leaf that collects it,
    so that an in-place activation behind the cut is no error.
    """
    leaf = upload.smashed.detach()
    if leaf.is_floating_point():
        leaf = leaf.requires_grad_()
    try:
        loss = objective.loss(learner.forward(leaf.clone(), noise), upload.targets)
        loss.backward()
        learner.step()
    except Exception as error:
        raise StepError(upload.device, upload.step) from error
    return Reply(upload.device, upload.step, leaf.grad, loss.detach())


class Replicated(EdgeTrainer):
    """A back per device, trained on that device's uploads; replicas are averaged with weights n_k/n.

    SplitFed V1 (Thapa et al., AAAI 2022, Algorithm 1) and V3 (Gawali et al. 2020).
    """

    divisible = True

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round: no device has a replica yet."""
        super().begin(bench, edge, back)
        self._sessions: dict[int, tuple[Learner, seeds.Stream]] = {}

    def open(self, device: int) -> None:
        """Give the device a replica of the back."""
        bench = self.bench
        learner = bench.back.borrow(bench.optimizer)
        learner.begin(self.back, bench.learning_rate, bench.kept(f"device-{device}"))
        self._sessions[device] = learner, bench.noise(device)

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Train each device's own replica on its upload."""
        replies = []
        for upload in messages:
            learner, noise = self._sessions[upload.device]
            replies.append(train_back(learner, self.bench.objective, upload, noise.at(upload.step)))
        return replies

    def close(self, device: int, weight: float) -> None:
        """Add the device's replica to the average."""
        learner, _ = self._sessions.pop(device)
        self.sum.add(learner.state(), weight)
        self.bench.keep(f"device-{device}", learner)
        self.bench.back.give_back(learner)

    def result(self) -> WeightedSum:
        """The sum of n_k * replica."""
        return self.sum

    def snapshot(self, device: int) -> Snapshot:
        """The device's replica and its optimizer's state."""
        learner, _ = self._sessions[device]
        return Snapshot(learner.state().clone(), learner.optimizer_state(), 0)

    def adopt(self, device: int, snapshot: Snapshot) -> None:
        """Go on with a replica that another edge trained so far."""
        assert snapshot.back is not None
        bench = self.bench
        learner = bench.back.borrow(bench.optimizer)
        learner.begin(snapshot.back, bench.learning_rate, snapshot.optimizer)
        self._sessions[device] = learner, bench.noise(device)


class Sequential(EdgeTrainer):
    """One back, updated by one device's upload after another.

    SplitFed V2 (Thapa et al., AAAI 2022): `order="step"` takes the uploads of a step in an order drawn anew each
    step, as the paper's algorithm; `order="round"` trains device after device in an order drawn each round, as its
    released code. `order="fixed"` trains device after device in order of id (vanilla split learning).
    """

    ORDERS = ("step", "round", "fixed")

    def __init__(self, order: Literal["step", "round", "fixed"] = "step"):
        if order not in self.ORDERS:
            raise ConfigError(f"order={order!r} is not an order of uploads; allowed: {', '.join(self.ORDERS)}")
        self.order = order
        self.lockstep = order == "step"

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round with one back for the whole cohort."""
        super().begin(bench, edge, back)
        self._learner = bench.back.borrow(bench.optimizer)
        self._learner.begin(back, bench.learning_rate, bench.kept(f"edge-{edge}"))
        self._noise: dict[int, seeds.Stream] = {}
        self._examples = 0

    def arrange(self, devices: Sequence[int]) -> Sequence[int]:
        """Shuffled anew each round where `order="round"`."""
        return self._shuffled(devices, step=0) if self.order == "round" else devices

    def open(self, device: int) -> None:
        """The device joins the shared back."""
        self._noise[device] = self.bench.noise(device)

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Train the back on each upload in turn."""
        if self.order == "step":
            messages = self._shuffled(messages, step=messages[0].step)
        replies = []
        for upload in messages:
            noise = self._noise[upload.device].at(upload.step)
            replies.append(train_back(self._learner, self.bench.objective, upload, noise))
            self._examples += len(upload.targets)
        return replies

    def close(self, device: int, weight: float) -> None:
        """The device leaves; the back stays."""
        del self._noise[device]

    def result(self) -> WeightedSum:
        """The back, weighted by the examples it was trained on (for the mean over edges)."""
        self.sum.add(self._learner.state(), self._examples)
        self.bench.keep(f"edge-{self.edge}", self._learner)
        self.bench.back.give_back(self._learner)
        return self.sum

    def _shuffled(self, items: Sequence[T], step: int) -> list[T]:
        generator = seeds.torch_generator(
            self.bench.seed, "order", segment=f"edge-{self.edge}", round=self.bench.round, step=step
        )
        return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
