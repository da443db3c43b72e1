"""What an edge trainer is, and one step of a back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fsl import seeds
from fsl.errors import ConfigError, StepError
from fsl.learner import Learner, OptimizerRecipe, SegmentRuntime
from fsl.messages import Reply, Upload
from fsl.objective import Objective
from fsl.states import State, Total, WeightedSum


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
    total: Callable[[], Total]  # where replicas go: a sum, or states one by one if the cloud asks for them

    def noise(self, device: int) -> seeds.Stream:
        """The stream that the back's random layers draw from in a device's steps."""
        return seeds.Stream(self.seed, "forward", segment=self.back.name, device=device, round=self.round)

    def pooled_noise(self, edge: int) -> seeds.Stream:
        """The same where a forward is of no single device."""
        return seeds.Stream(self.seed, "forward", segment=f"{self.back.name}/edge-{edge}", round=self.round)


@dataclass(frozen=True)
class Snapshot:
    """What must follow a device that moves to another edge; it shares no memory with the trainer's state."""

    back: State | None
    optimizer: Mapping[str, Tensor]
    weight: float


class EdgeTrainer(ABC):
    """One algorithm's edge half, for one cohort in one round.

    `lockstep`: a step waits for an upload of every live device; otherwise each upload is served as it comes.
    `divisible`: each device has a back of its own, so a cohort may be divided over nodes without changing the result.
    `window`: the steps that a device uploads before it waits for the replies; 0: it never waits.
    `passes`: how often the back runs forward and backward over an upload, for simulated time.
    `movable`: a device may move to another edge in the middle of a round.
    """

    lockstep: bool = False
    divisible: ClassVar[bool] = False
    window: int = 1
    passes: float = 1.0
    movable: bool = False

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round from the back that the cloud sent."""
        self.bench = bench
        self.edge = edge
        self.back = back

    def arrange(self, devices: Sequence[int]) -> Sequence[int]:
        """The order in which devices train where they train one after another."""
        return devices

    @abstractmethod
    def open(self, device: int, weight: float) -> None:
        """A device's session begins; it stands for `weight` (its n_k) in averages over devices."""

    @abstractmethod
    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Answer the uploads of one step: of one device, or of all live ones in lockstep, in order of device id."""

    def flush(self) -> Sequence[Reply]:
        """Answer what is still unanswered when no device has anything left to upload."""
        return []

    @abstractmethod
    def close(self, device: int) -> None:
        """A device's session ends, all its batches done."""

    def abandon(self, device: int) -> None:  # noqa: B027 - most have nothing to drop
        """A device is lost in the middle of the round: what it alone had is dropped, and never counted."""

    @abstractmethod
    def result(self) -> Total:
        """The backs of this round, weighted."""

    def figures(self) -> Mapping[str, int]:
        """Counts of this round for the strategy's metrics; the cloud adds them up over edges."""
        return {}

    def snapshot(self, device: int) -> Snapshot:
        """What must follow a device that moves away, copied."""
        raise ConfigError(f"{type(self).__name__} cannot hand over a device in the middle of a round")

    def adopt(self, device: int, snapshot: Snapshot) -> None:
        """Take over a device that another edge handed over."""
        raise ConfigError(f"{type(self).__name__} cannot take over a device in the middle of a round")


class SharedBack(EdgeTrainer):
    """A trainer with one back for its whole cohort; edges are averaged by the examples that each trained on.

    Where it is `movable`, a device that moves leaves what it taught this back, and joins the other edge's cohort.
    """

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round with one back for the whole cohort."""
        super().begin(bench, edge, back)
        self.learner = bench.back.borrow(bench.optimizer)
        self.learner.begin(back, bench.learning_rate, bench.kept(f"edge-{edge}"))
        self.examples = 0

    def open(self, device: int, weight: float) -> None:
        """The device joins the shared back."""

    def close(self, device: int) -> None:
        """The device leaves; the back stays."""

    def snapshot(self, device: int) -> Snapshot:
        """Nothing but the device itself moves."""
        return Snapshot(None, {}, 0.0) if self.movable else super().snapshot(device)

    def adopt(self, device: int, snapshot: Snapshot) -> None:
        """The device joins this cohort."""
        self.open(device, snapshot.weight)

    def result(self) -> WeightedSum:
        """The back, weighted by the examples it was trained on (for the mean over edges)."""
        total = WeightedSum(self.bench.back.layout)
        total.add(self.learner.state(), self.examples)
        self.bench.keep(f"edge-{self.edge}", self.learner)
        self.bench.back.give_back(self.learner)
        return total


def train_back(learner: Learner, objective: Objective, upload: Upload, noise: int, answers: bool = True) -> Reply:
    """One step of a back on one device's upload: forward, loss, backward, optimizer step.

    The cut gradient is that of the weights before the step. The back runs on a clone of the leaf that collects it,
    so that an in-place activation behind the cut is no error. `answers=False` leaves the cut gradient out.
    """
    leaf = upload.smashed.detach()
    if answers and leaf.is_floating_point():
        leaf = leaf.requires_grad_()
    try:
        loss = objective.loss(learner.forward(leaf.clone(), noise), upload.targets)
        loss.backward()
        learner.step()
    except Exception as error:
        raise StepError(upload.device, upload.step) from error
    return Reply(upload.device, upload.step, leaf.grad, loss.detach())
