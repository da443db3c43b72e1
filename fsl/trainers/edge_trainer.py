"""What an edge trainer is, and what it gets to work with."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fsl import seeds
from fsl.errors import ConfigError, LostError
from fsl.objective import Objective
from fsl.segments.finite import finite_state
from fsl.segments.learner import Learner, Lender, SegmentRuntime, lend_plain
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.states import State
from fsl.segments.sums import Total, WeightedSum
from fsl.trainers.back_steps import train_back
from fsl.trainers.judging import usable_alone
from fsl.trainers.uploads import Reply, Upload


@dataclass(frozen=True, kw_only=True)
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
    total: Callable[[], Total]  # makes what replicas are added to: a sum, or one state per device
    lender: Lender = lend_plain  # who makes the learners that a trainer borrows
    # A step whose loss is above it has diverged, and is refused; None: no step is refused.
    loss_limit: float | None = math.inf

    def borrow(self, device: int | None = None) -> Learner:
        """Lend a learner of the back: to `device`, or (None) to the edge, whose devices share it."""
        return self.lender(self.back, self.optimizer, device)

    def layer_seeds(self, device: int) -> seeds.Stream:
        """Returns the seeds from which the back's random layers draw in a device's steps."""
        return seeds.Stream(self.seed, "forward", segment=self.back.name, device=device, round=self.round)

    def pooled_layer_seeds(self, edge: int) -> seeds.Stream:
        """Returns the same for steps over the batches of several devices."""
        return seeds.Stream(self.seed, "forward", segment=f"{self.back.name}/edge-{edge}", round=self.round)


@dataclass(frozen=True)
class Snapshot:
    """What must follow a device that moves to another edge; it shares no memory with the trainer's state."""

    back: State | None
    optimizer: Mapping[str, Tensor]
    weight: float
    transients: Mapping[str, Tensor] = field(default_factory=dict)  # buffers beside the state that have changed


class EdgeTrainer(ABC):
    """One algorithm's edge half, for one cohort in one round.

    `lockstep`: a step waits for an upload of every live device; otherwise each upload is served as it comes.
    `divisible`: each device has a back of its own, so a cohort may be divided over nodes without changing the result.
    `window`: the steps that a device uploads before it waits for the replies; 0: it never waits.
    `passes`: how often the back runs forward and backward over an upload, for simulated time.
    `movable`: a device may move to another edge in the middle of a round.
    `pools`: it joins the values of several uploads in one batch, so that all must have one shape beside their rows.
    `keeps`: it remembers something from round to round. A trainer object lives for one round; what `kept` returns at
    its end is given to the next one's `restore`, and is in checkpoints.
    `answers`: its replies have cut gradients; where they never have, nothing goes down to a device.
    `asynchronous`: one back learns from each upload as it comes, and finished fronts are merged at once, by `weight`;
    `arrived` is the order in which they came, a device for each upload and `finished(device)` for its front.
    `tails`: it computes each device's loss by `objective.loss` or `losses` on that device's rows, once a step and in
    the step of their upload, so that the tail of a U-shaped split may compute it on the device instead.
    `accumulates`: each upload is followed by `learner.step(upload.step, device=upload.device)`, and no other device's
    comes before its device is done, so that several batches of a device may make one step of the back.
    `hops`: the same, and the last segment may be at a server above the edge, which trains it by this rule too.
    `one_loss`: a step's uploads are of the same samples, whose rows and losses count once.
    """

    lockstep: bool = False
    divisible: bool = False
    window: int = 1
    passes: float = 1.0
    movable: bool = False
    answers: bool = True
    keeps: bool = False
    tails: bool = False
    accumulates: bool = False
    pools: bool = False
    hops: bool = False
    one_loss: bool = False
    asynchronous: bool = False
    arrived: Sequence[int] = ()

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
        """A device's session begins; it stands for `weight` (as a rule its n_k) in averages over devices."""

    @abstractmethod
    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Answer the uploads of one step: of one device, or of all live ones in lockstep, in order of device id."""

    def flush(self) -> Sequence[Reply]:
        """Answer what is still unanswered when no device has anything left to upload."""
        return []

    @abstractmethod
    def close(self, device: int) -> None:
        """A device's session ends, all its batches done."""

    def update(self, device: int) -> tuple[State, State]:
        """Returns the device's own back as the round began and now, not copied; ConfigError for a shared one."""
        raise ConfigError(f"{type(self).__name__} has no back of a device's own")

    def abandon(self, device: int) -> None:  # noqa: B027 - most have nothing to drop
        """A device is lost in the middle of the round: what it alone had is dropped, and never counted."""

    @abstractmethod
    def result(self) -> Total:
        """Returns the round's backs, summed with their weights; called once, after every `close`."""

    def kept(self, device: int | None = None) -> Mapping[str, Tensor] | None:
        """Returns the tensors to keep until the edge trains again, by name; the round calls it just before `result`.

        None or an empty mapping: nothing is kept, and the next round does not call `restore`.

        Where each device has a back of its own (`divisible`), what to remember of this `device`: asked for just before
        `close`, and not for one that is lost.
        """
        raise ConfigError(f"{type(self).__name__} has keeps = True and must say in kept() what it keeps")

    def restore(self, kept: Mapping[str, Tensor], device: int | None = None) -> None:
        """Go on from what `kept` returned when the edge, or this `device`, last trained; not called for nothing.

        Called after `begin`, or after the device's `open`; the tensors are the trainer's own, where its back is.
        """
        raise ConfigError(f"{type(self).__name__} has keeps = True and must take in restore() what it kept")

    def counts(self) -> Mapping[str, int]:
        """Counts of this round for the strategy's metrics; the cloud adds them up over edges."""
        return {}

    def snapshot(self, device: int) -> Snapshot:
        """Returns a copy of the state that a device takes to another edge; ConfigError unless `movable`."""
        raise ConfigError(f"{type(self).__name__} cannot hand over a device in the middle of a round")

    def adopt(self, device: int, snapshot: Snapshot) -> None:
        """Take over a device that another edge handed over."""
        raise ConfigError(f"{type(self).__name__} cannot take over a device in the middle of a round")


def counts_of(trainer: EdgeTrainer) -> Mapping[str, int]:
    """Read a trainer's counts; one that was written when the hook was `figures()` is asked by that name."""
    former: Callable[[], Mapping[str, int]] | None = getattr(trainer, "figures", None)
    return trainer.counts() if former is None else former()


class SharedBack(EdgeTrainer):
    """A trainer with one back for its whole cohort; edges are averaged by the examples that each trained on.

    Where it is `movable`, a device that moves leaves what it taught this back, and joins the other edge's cohort.
    """

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round with one back for the whole cohort."""
        super().begin(bench, edge, back)
        self.learner = bench.borrow()
        self.learner.begin(back, bench.learning_rate, bench.kept(f"edge-{edge}"))
        self.examples = 0.0

    def layer_seed(self, uploads: Sequence[Upload]) -> int:
        """Returns the seed of the back's random layers in a step on all of these uploads."""
        return self.bench.pooled_layer_seeds(self.edge).at(uploads[0].step)

    def train_on(self, upload: Upload, layer_seed: int) -> Reply:
        """Returns the reply to a step of the back on one upload; an applied step's examples count at once."""
        reply = train_back(self.learner, self.bench.objective, upload, layer_seed, limit=self.bench.loss_limit)
        if reply.refused is None:
            self.examples += len(upload.targets)
        return reply

    def usable_alone(self, upload: Upload, uploads: Sequence[Upload]) -> bool:
        """Whether a step on one of these uploads alone could be applied."""
        bench = self.bench
        return usable_alone(self.learner, bench.objective, upload, self.layer_seed(uploads), bench.loss_limit)

    def open(self, device: int, weight: float) -> None:
        """The device joins the shared back."""

    def close(self, device: int) -> None:
        """The device leaves; the back stays."""

    def snapshot(self, device: int) -> Snapshot:
        """Returns an empty snapshot: a shared back stays at its edge."""
        return Snapshot(None, {}, 0.0) if self.movable else super().snapshot(device)

    def adopt(self, device: int, snapshot: Snapshot) -> None:
        """The device joins this cohort."""
        self.open(device, snapshot.weight)

    def result(self) -> WeightedSum:
        """The back, weighted by the examples it was trained on (for the mean over edges).

        LostError where it is not finite.
        """
        if not finite_state(self.learner.state()):
            self.bench.back.give_back(self.learner)
            raise LostError(None, f"the back of edge {self.edge} is not finite after its round")
        total = WeightedSum(self.bench.back.layout)
        total.add(self.learner.state(), self.examples)
        self.bench.keep(f"edge-{self.edge}", self.learner)
        self.bench.back.give_back(self.learner)
        return total
