"""What an edge trainer is, and one step of a back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fsl import seeds
from fsl.errors import NO_GRADIENT, ConfigError, LostError, SplitError, StepError
from fsl.messages.steps import Reply, Upload
from fsl.objective import Objective
from fsl.privacy.lending import learner_kind
from fsl.privacy.noise import noise_source
from fsl.privacy.settings import Privacy, SegmentPrivacy
from fsl.segments.finite import REFUSED, finite_state, usable
from fsl.segments.learner import Learner, Release, SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.states import State
from fsl.segments.sums import Total, WeightedSum


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
    privacy: SegmentPrivacy | None = None  # how the back is trained privately; None: as ever
    secure: bool = False  # the noise of privacy comes from the machine's secure generator
    # Above it a step's loss is far from all training, and the step is refused. None: no step ever is, since a clip
    # bounds what a sample or a device does, and who is lost would tell of it.
    loss_limit: float | None = math.inf

    def borrow(self) -> Learner:
        """A learner of the back."""
        return self.back.borrow(self.optimizer, learner_kind(self.privacy))

    def rows(self, uploaded: int) -> float:
        """How many rows a batch counts in averages over edges: the expected ones where its own size is private."""
        expected = None if self.privacy is None else self.privacy.expected_rows
        return uploaded if expected is None else expected

    def release(self, step: int, owner: int | str, uploads: int = 1) -> Release | None:
        """What a private step of the back is made of, over so many devices' batches; None where it is not private.

        `owner` is the device whose batch it is, or the edge's name where it is of no single device.
        """
        if self.privacy is None:
            return None
        segment, device = ("back", owner) if isinstance(owner, int) else (f"back/{owner}", -1)
        noise = noise_source(self.secure, self.seed, "dp-noise", segment=segment, device=device, round=self.round)
        return Release(noise.normal(step), uploads)

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
    transients: Mapping[str, Tensor] = field(default_factory=dict)  # buffers beside the state that have changed


class EdgeTrainer(ABC):
    """One algorithm's edge half, for one cohort in one round.

    `lockstep`: a step waits for an upload of every live device; otherwise each upload is served as it comes.
    `divisible`: each device has a back of its own, so a cohort may be divided over nodes without changing the result.
    `window`: the steps that a device uploads before it waits for the replies; 0: it never waits.
    `passes`: how often the back runs forward and backward over an upload, for simulated time.
    `movable`: a device may move to another edge in the middle of a round.
    `private`: its back can be trained by DP-SGD, and it does with cut gradients what `spread` and `unaccountable` say.
    A class of one's own says so in its own body, for what it inherits was said of another step.
    `keeps`: it remembers something from round to round. A trainer object lives for one round; what `kept` returns at
    its end is given to the next one's `restore`, and is in checkpoints.
    `answers`: its replies have cut gradients; where they never have, nothing goes down to a device.
    """

    lockstep: bool = False
    divisible: ClassVar[bool] = False
    window: int = 1
    passes: float = 1.0
    movable: bool = False
    private: ClassVar[bool] = False
    answers: bool = True
    keeps: bool = False

    @classmethod
    def declares_private(cls) -> bool:
        """Whether its author says that its back can be trained by DP-SGD."""
        return cls.private and (cls.__module__.startswith("fsl.") or "private" in vars(cls))

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
        """The back that a device of its own started from, and as it is now, not copied."""
        raise ConfigError(f"{type(self).__name__} has no back of a device's own")

    def unaccountable(self, privacy: Privacy) -> str | None:
        """Why training with this trainer has no valid account, and what to change; None where it has."""
        return None

    def spread(self, devices: int) -> int:
        """How many of so many devices' fronts one sample moves in a step."""
        return 1

    def settle(self, device: int, step: int, factors: Tensor) -> None:
        """The clip factors (B,) of a device's step, where one clip is over front and back."""
        raise ConfigError(f"{type(self).__name__} has no clip over front and back together")

    def abandon(self, device: int) -> None:  # noqa: B027 - most have nothing to drop
        """A device is lost in the middle of the round: what it alone had is dropped, and never counted."""

    @abstractmethod
    def result(self) -> Total:
        """The backs of this round, weighted."""

    def kept(self, device: int | None = None) -> Mapping[str, Tensor] | None:
        """What to remember until the edge trains again, where `keeps` is set; asked for just before `result`.

        None or nothing named: there is nothing to remember, and the next round begins as the first one did.

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
        self.learner = bench.borrow()
        self.learner.begin(back, bench.learning_rate, bench.kept(f"edge-{edge}"))
        self.examples = 0.0

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


def train_back(
    learner: Learner,
    objective: Objective,
    upload: Upload,
    noise: int,
    answers: bool = True,
    release: Release | None = None,
    joint: bool = False,
    limit: float | None = math.inf,
) -> Reply:
    """One step of a back on one device's upload: forward, loss, backward, optimizer step.

    A step whose loss lies above `limit`, or that made something which is not finite, is refused before it is applied.
    With a `joint` clip the step itself comes later, when the device has said what each sample's gradient counts.

    The cut gradient is that of the weights before the step. The back runs on a clone of the leaf that collects it,
    so that an in-place activation behind the cut is no error. `answers=False` leaves the cut gradient out.
    """
    leaf = upload.smashed.detach()
    if answers and leaf.is_floating_point():
        leaf = leaf.requires_grad_()
    loss, norms = leaf.new_zeros(()), None
    mark = None if limit is None else learner.mark()
    try:
        if len(leaf):
            loss = objective.loss(learner.forward(leaf.clone(), noise), upload.targets)
            loss.backward()
        if joint:
            norms = learner.norms()
        if mark is not None and not usable([loss], [leaf.grad, norms, *learner.made()], limit):
            learner.undo(mark)
            return refusal(upload)
        if not joint:
            learner.step(release=release)
    except Exception as error:
        raise StepError(upload.device, upload.step) from error
    gradient = cut_gradient(leaf, leaf.grad) if answers else None
    return Reply(upload.device, upload.step, gradient, loss.detach(), norms=norms, judged=mark is not None)


def refusal(upload: Upload) -> Reply:
    """The answer to an upload that the back did not learn from."""
    return Reply(upload.device, upload.step, None, torch.zeros(()), refused=REFUSED)


def usable_alone(learner: Learner, objective: Objective, upload: Upload, noise: int, limit: float | None) -> bool:
    """Whether a step on this upload alone could be applied; the learner is left as it was."""
    mark = learner.mark()
    leaf = upload.smashed.detach()
    if leaf.is_floating_point():
        leaf = leaf.clone().requires_grad_()
    loss = objective.loss(learner.forward(leaf.clone(), noise), upload.targets)
    loss.backward()
    found = usable([loss], [leaf.grad, *learner.made()], limit)
    learner.undo(mark)
    return found


def cut_gradient(smashed: Tensor, gradient: Tensor | None) -> Tensor:
    """What a device is sent: `gradient`, or zeros for an empty batch and for whole numbers, which have none.

    SplitError where the loss does not depend on smashed data that could have a gradient: a front that were sent zeros
    would not stay as it is (momentum, weight decay), as it does where the whole model is trained.
    """
    if gradient is not None:
        return gradient
    if len(smashed) and smashed.is_floating_point():
        raise SplitError(f"in this step {NO_GRADIENT}")
    return torch.zeros_like(smashed)
