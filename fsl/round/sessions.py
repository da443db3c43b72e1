"""What an edge notes of one device's session, and what follows the device to another edge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fsl.messages.steps import ReplyPacket
from fsl.trainers import Snapshot


@dataclass(frozen=True, slots=True)
class Batch:
    """Size of one upload: its rows, and the weight of its mean loss in a mean over steps (usually the rows)."""

    rows: int
    loss_weight: float


@dataclass
class Session:
    """One device's training at one edge in one round: steps, losses and bytes so far."""

    device: int
    weight: float
    step: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    losses: list[Tensor] = field(default_factory=list)  # mean loss of each step, scalars
    batches: list[Batch] = field(default_factory=list)  # one for each answered step
    waiting: dict[int, Batch] = field(default_factory=dict)  # steps that the trainer has not answered
    pending: ReplyPacket | None = None  # the reply to the newest upload; it follows a device that moves
    hop_up_bytes: int = 0  # between this edge and a server above it
    hop_down_bytes: int = 0

    @property
    def examples(self) -> int:
        """Number of rows that the trainer has answered."""
        return sum(batch.rows for batch in self.batches)

    @property
    def loss_weight(self) -> float:
        """Sum of the losses' weights."""
        return sum((batch.loss_weight for batch in self.batches), 0.0)

    def loss_sum(self) -> float:
        """Returns the sum over steps of the loss times its weight, in float64."""
        return weighted_loss(self.losses, [batch.loss_weight for batch in self.batches])


def weighted_loss(losses: Sequence[Tensor], counts: Sequence[float]) -> float:
    """Returns the sum over steps of count * mean loss, in float64; reads the accelerator once."""
    if not losses:
        return 0.0
    return sum(loss * count for loss, count in zip(torch.stack(list(losses)).tolist(), counts, strict=True))


@dataclass(frozen=True)
class SessionSnapshot:
    """A session on its way to another edge."""

    session: Session
    trainer: Snapshot
    codecs: Mapping[str, Tensor] = field(default_factory=dict)  # what the edge's halves of the codecs remember
