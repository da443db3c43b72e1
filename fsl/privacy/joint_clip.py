"""Clips a sample's gradient over front and back together: the halves exchange its norms before either steps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from fsl.errors import ConfigError
from fsl.segments.learner import Learner, SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.states import State
from fsl.trainers.around import AroundTrainer
from fsl.trainers.edge_trainer import EdgeBench
from fsl.trainers.uploads import Reply, Upload

if TYPE_CHECKING:
    from fsl.privacy.private_learner import JointLearner


class JointClip(AroundTrainer):
    """Any edge trainer with a back per device, where a sample's gradient is clipped over front and back together.

    The learners that it lends put their step off. A reply gets the norms over the back, the device's next upload (or
    the end of its session) the factors by which both halves clip; only then the back steps.
    """

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round; whoever borrows a learner for a device is lent one that waits for the device's factors."""
        self._lent: dict[int, JointLearner] = {}

        def lend(runtime: SegmentRuntime, optimizer: OptimizerRecipe, device: int | None) -> Learner:
            if device is None:
                raise ConfigError(f"{type(self.trainer).__name__} has no clip over front and back together")
            learner = self._lent[device] = bench.lender(runtime, optimizer, device)  # type: ignore[assignment]
            return learner

        super().begin(replace(bench, lender=lend), edge, back)

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Take the factors of the steps before; answer the uploads, with the norms of their samples."""
        for upload in messages:
            if upload.factors is not None:
                self.apply_clip_factors(upload.device, upload.factors)
        return [replace(reply, norms=self._lent[reply.device].norms) for reply in super().step(messages)]

    def apply_clip_factors(self, device: int, factors: Tensor) -> None:
        """Make the step that a device's back put off, with the clip factors (B,) of its samples."""
        self._lent[device].apply_clip_factors(factors)

    def close(self, device: int) -> None:
        """A device's session ends, its last step made."""
        super().close(device)
        del self._lent[device]

    def abandon(self, device: int) -> None:
        """A device is lost; what its back put off is never made."""
        super().abandon(device)
        self._lent.pop(device, None)
