"""Which learner a segment is trained by: one that clips and adds noise where its plan says so."""

from dataclasses import dataclass

from fsl.privacy.settings import SegmentPrivacy
from fsl.segments.learner import Learner, LearnerKind, SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe


@dataclass(frozen=True)
class PrivateKind:
    """Learners that are trained by DP-SGD as the settings say."""

    privacy: SegmentPrivacy

    def __call__(self, runtime: SegmentRuntime, optimizer: OptimizerRecipe) -> Learner:
        """A new one; Opacus takes a while to import."""
        from fsl.privacy.private_learner import PrivateLearner

        return PrivateLearner(runtime, optimizer, self.privacy)


def learner_kind(privacy: SegmentPrivacy | None) -> LearnerKind | None:
    """The kind for a segment's settings; None for a plain learner."""
    return None if privacy is None else PrivateKind(privacy)
