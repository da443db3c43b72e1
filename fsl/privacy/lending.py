"""Lends the learners of a private round; each draws the noise of the device or edge that it is lent to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsl.errors import RunError
from fsl.privacy.clip_rules import rule_named
from fsl.privacy.empty_batches import EmptyBatchLearner
from fsl.privacy.noise import StepNoise
from fsl.privacy.settings import SegmentPrivacy
from fsl.segments.learner import Learner, Lender, SegmentRuntime, lend_plain
from fsl.segments.optimizer import OptimizerRecipe

if TYPE_CHECKING:
    from fsl.privacy.private_learner import PrivateLearner


@dataclass(frozen=True)
class PrivateKind:
    """Learners that are trained by DP-SGD as the settings say."""

    privacy: SegmentPrivacy
    allowed: tuple[str, ...]  # packages that a rule's class may be of

    def __call__(self, runtime: SegmentRuntime, optimizer: OptimizerRecipe) -> "PrivateLearner":
        """A new one; Opacus takes a while to import."""
        from fsl.privacy.private_learner import JointLearner, PrivateLearner

        rule = None if self.privacy.rule is None else rule_named(self.privacy.rule, self.allowed)
        return (JointLearner if self.privacy.joint else PrivateLearner)(runtime, optimizer, self.privacy, rule)


@dataclass(frozen=True)
class EmptyBatchKind:
    """Learners without noise that take batches without rows."""

    def __call__(self, runtime: SegmentRuntime, optimizer: OptimizerRecipe) -> Learner:
        """A new one."""
        return EmptyBatchLearner(runtime, optimizer)


@dataclass
class PrivateLender:
    """Lends a segment's private learners; each draws the noise of its own steps.

    RunError where a trainer borrows the edge's learner twice: the two would draw the same noise.
    """

    kind: PrivateKind
    noise: StepNoise
    lent_to_edge: bool = False

    def __call__(self, runtime: SegmentRuntime, optimizer: OptimizerRecipe, device: int | None) -> Learner:
        """A learner for this device (None: for the edge)."""
        if device is None:
            if self.lent_to_edge:
                raise RunError(
                    f"segment {runtime.name}: bench.borrow() lends the edge's one private learner, and it is lent "
                    "already; borrow(device) lends one to a device, with noise of its own"
                )
            self.lent_to_edge = True
        learner: PrivateLearner = runtime.borrow(optimizer, self.kind)  # type: ignore[assignment]
        learner.lend(self.noise, device)
        return learner


def lend_for_empty_batches(runtime: SegmentRuntime, optimizer: OptimizerRecipe, device: int | None) -> Learner:
    """A learner that steps without noise, though its batches are Poisson draws."""
    return runtime.borrow(optimizer, EmptyBatchKind())


def lender_of(privacy: SegmentPrivacy | None, noise: StepNoise, allowed: tuple[str, ...]) -> Lender:
    """Who lends a segment's learners, by how it is trained; None: without noise."""
    return lend_plain if privacy is None else PrivateLender(PrivateKind(privacy, allowed), noise)
