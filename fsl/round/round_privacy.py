"""Builds the privacy objects of devices and edges from a round's plan."""

from torch import Tensor

from fsl.codecs.cut_codec import CutCodec
from fsl.codecs.device_cut import DeviceCut
from fsl.errors import ConfigError
from fsl.messages.round_plan import RoundPlan
from fsl.objective import Objective
from fsl.privacy.detector import Watch
from fsl.privacy.empty_batches import EmptyBatchObjective, PoissonBatches
from fsl.privacy.joint_clip import JointClip
from fsl.privacy.lending import lend_for_empty_batches, lender_of
from fsl.privacy.noise import StepNoise, noise_source
from fsl.privacy.private_cut import PrivateCut
from fsl.privacy.randomized_labels import Relabelling, corrected, draw_shifts, seeded_relabelling
from fsl.privacy.settings import SegmentPrivacy
from fsl.round.workload import Worker, Workload
from fsl.segments.learner import Lender
from fsl.trainers import EdgeTrainer


def private(plan: RoundPlan, segment: str) -> SegmentPrivacy | None:
    """Returns a segment's privacy settings in a plan; None: it trains without."""
    return None if plan.privacy is None else plan.privacy.segment(segment, plan.batch_size)


def lender(plan: RoundPlan, segment: str, workload: Workload, edge: int | None = None) -> Lender:
    """Returns the lender of a segment's learners in this round; `edge`: whose backs it lends, None for devices."""
    privacy = private(plan, segment)
    if privacy is None and edge is not None and plan.privacy is not None and plan.privacy.poisson:
        return lend_for_empty_batches
    return lender_of(privacy, StepNoise(workload.secure, plan.seed, plan.round, segment, edge), workload.allowed)


def protected(trainer: EdgeTrainer, plan: RoundPlan) -> EdgeTrainer:
    """Wrap an edge trainer for the plan's privacy: for Poisson batches, a clip over both segments, or not at all."""
    if plan.privacy is None:
        return trainer
    if plan.privacy.poisson:
        back = private(plan, "back")
        trainer = PoissonBatches(trainer, None if back is None else back.expected_rows)
    return JointClip(trainer) if plan.privacy.joint else trainer


def reported_batch_size(plan: RoundPlan) -> int | None:
    """Returns the batch size for reports: the expected one under Poisson draws, None for each batch's own."""
    return plan.batch_size if plan.privacy is not None and plan.privacy.poisson else None


def relabelling(worker: Worker, plan: RoundPlan, device: int, rows: Tensor) -> Relabelling | None:
    """Returns a device's randomized labels; None where it reveals the true ones.

    Seeded ones follow from the seed; secure ones are drawn once and stay on the device's disk.
    """
    labels, classes = plan.privacy.labels if plan.privacy is not None else None, worker.workload.data.classes
    if labels is None or plan.trainer is None:
        return None
    if classes is None or classes < 2:
        raise ConfigError("privacy.labels: this device's data have no classes to choose a label from")
    if not worker.workload.secure:
        return seeded_relabelling(rows, classes, labels, plan.seed, device)
    owner = f"labels/{device}/{labels.epsilon:g}"
    kept = worker.store.load(owner, 1) if worker.store.path(owner, 1).exists() else None
    if kept is None:
        noise = noise_source(True, plan.seed, "labels", device=device)
        kept = {"shifts": draw_shifts(len(rows), classes, labels.epsilon, noise)}
        worker.store.save(owner, 1, kept, (0, 0))
        worker.store.sync()  # before the device reveals any of them
    if len(kept["shifts"]) != len(rows):
        raise ConfigError(
            f"device {device} holds {len(rows)} samples, and labels were drawn for {len(kept['shifts'])}; a data set "
            "that changed needs a folder of its own"
        )
    return Relabelling(rows, kept["shifts"], classes)


def edge_objective(objective: Objective, plan: RoundPlan) -> Objective:
    """What a back minimises, or a tail: the run's objective, corrected for randomized labels; batches may be empty."""
    if plan.privacy is None:
        return objective
    objective = corrected(objective, plan.privacy.labels)
    return EmptyBatchObjective(objective) if plan.privacy.poisson else objective


def device_cut(plan: RoundPlan, device: int, up: CutCodec, down: CutCodec, secure: bool) -> DeviceCut:
    """Returns a device's end of the cut, with what a plan's privacy does there."""
    privacy = plan.privacy
    if privacy is None:
        return DeviceCut(up, down)
    where = {"device": device, "round": plan.round}
    return PrivateCut(
        up,
        down,
        noise=privacy.cut,
        source=noise_source(secure, plan.seed, "cut-noise", **where),
        bounded=privacy.clipped,
        nopeek=privacy.nopeek,
        watch=None if privacy.detector is None else Watch(privacy.detector, device, plan.round),
    )
