"""What is noted of a stack's devices in one round: steps, losses, and the bytes that messages would have weighed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fsl.engines.stacked_batches import JoinedBatch
from fsl.engines.step_bytes import StepBytes
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import RoundPlan
from fsl.objective import Objective
from fsl.round.batches import BatchPlan
from fsl.round.sessions import weighted_loss
from fsl.round.workload import Worker
from fsl.trainers import Reply


@dataclass
class _Tally:
    """One device's round."""

    steps: int = 0
    examples: int = 0
    losses: list[Tensor] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    up: int = 0
    down: int = 0


class Tallies:
    """The tallies of a cohort; `counts` are those that an edge server would give."""

    def __init__(self, plan: RoundPlan, worker: Worker, batches: Mapping[int, BatchPlan], objective: Objective):
        self._plan, self._worker, self._batches, self._objective = plan, worker, batches, objective
        self._of = {device: _Tally() for device in batches}
        self._bytes = StepBytes()
        self.counts: Counter[str] = Counter()

    def samples(self, device: int) -> int:
        """Returns n_k."""
        return self._worker.workload.partition.size(device)

    def note(
        self, devices: Sequence[int], batch: JoinedBatch, smashed: Tensor, means: Sequence[Tensor | None] | Tensor
    ) -> None:
        """Note a step of devices, each with its mean loss; None: it is lost, and has none."""
        for device, values, targets, mean in zip(devices, batch.own(smashed), batch.own(batch.targets), means):
            if mean is None:
                continue
            tally, sent = self._of[device], self._bytes.of(values, targets)
            tally.steps += 1
            tally.examples += len(targets)
            tally.losses.append(mean)
            tally.weights.append(self._objective.weight(targets))
            tally.up += sent.up
            tally.down += sent.down
            self.counts["smashed_bytes"] += sent.values

    def note_common(self, common: Sequence[Reply]) -> None:
        """Note a step's replies with a gradient that their devices have in common."""
        if common:
            sent = [self._bytes.of_gradient(reply.gradient) for reply in common]
            self.counts["broadcast_saved"] += sum(sent) - max(sent)
            self.counts["common_bytes"] += max(reply.gradient.nbytes for reply in common)

    def losses(self, device: int) -> list[Tensor]:
        """Returns the mean loss of each of a device's steps, scalars."""
        return self._of[device].losses

    def report(self, device: int) -> DeviceReport:
        """Returns a device's round as the cloud hears of it."""
        tally, private = self._of[device], self._plan.fronts == "private"
        return DeviceReport(
            device=device,
            samples=self.samples(device),
            examples=tally.examples,
            steps=tally.steps,
            skipped=self._batches[device].skipped,
            loss_sum=weighted_loss(tally.losses, tally.weights),
            loss_weight=sum(tally.weights, 0.0),
            up_bytes=tally.up,
            down_bytes=tally.down,
            model_bytes=0 if private else 2 * self._worker.segments["front"].layout.bytes,
        )
