"""Says, from a round's plan, which work is unusable, and which reason a device may reveal for it."""

from fsl.errors import LostError
from fsl.messages.round_plan import RoundPlan
from fsl.round.workload import Worker
from fsl.segments.finite import UNUSABLE, finite, loss_limit
from fsl.segments.learner import Learner


def limit_of(worker: Worker, plan: RoundPlan, segment: str = "front") -> float | None:
    """Returns the loss above which a step of this segment is refused; None where no step is.

    A back without noise of its own gets the usual limit: its inputs were protected before, or it protects nobody.
    """
    workload, privacy = worker.workload, plan.privacy
    clipped = privacy is not None and privacy.clipped
    if privacy is not None and privacy.dp_sgd is not None and segment == "back":
        clipped = privacy.segment("back", plan.batch_size) is not None
    return loss_limit(workload.objective.divergence_bound(workload.data.classes), clipped)


def lost_reason(plan: RoundPlan, reason: str) -> str:
    """Returns the reason for losing a device that others may read; in a private run it says nothing of the data.

    For work that was looked at and refused; an exception's own text goes through `fsl.privacy.reasons.failure_reason`.
    """
    return UNUSABLE if plan.privacy is not None and plan.privacy.private else reason


def refuse_optimizer(device: int | None, owner: str, learner: Learner, plan: RoundPlan) -> None:
    """Raise LostError for an optimizer state from which no later step could go on."""
    if not finite(learner.optimizer_state().values()):
        raise LostError(
            device, lost_reason(plan, f"the optimizer state of {owner} is not finite; its training has diverged")
        )
