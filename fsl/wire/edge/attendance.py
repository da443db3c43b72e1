"""Records of one round at an edge: each device's progress, and the round's outcome."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fsl.round.sessions import Session
from fsl.trainers.uploads import Upload


@dataclass
class Attendance:
    """One device's progress in this round, as its edge sees it."""

    device: int
    due: float | None = None  # the edge loses it then, if nothing has come
    opened: bool = False  # the edge server has opened its session: it may train
    joined: bool = False
    finished: bool = False  # it has said that no upload follows
    settled: bool = False  # its session here is over: closed, or lost
    away: bool = False  # at another edge, or on its way: this edge neither serves it nor waits for it
    leaving: int | None = None  # the edge that it moves to once this one has answered all its uploads
    served: int = -1  # the newest upload that the trainer has seen
    relay: bytes = b""
    factors: Tensor | None = None  # clip factors (B,) of its last step, where front and back share one clip
    update: float = 0.0  # squared norm of its part of its update, where privacy protects whole devices
    uploads: deque[Upload] = field(default_factory=deque)

    @property
    def here(self) -> bool:
        """Whether its session is at this edge, and not over."""
        return not self.settled and not self.away


@dataclass(frozen=True)
class EdgeOutcome:
    """The outcome of a round at an edge."""

    closed: Sequence[Session]  # of the devices that finished, in that order
    lost: Mapping[int, str]  # the reason, by device
    failed: str | None  # the trainer's error, after which nothing of the round counts
    moved_bytes: Mapping[int, int] = field(default_factory=dict)  # bytes from edge to edge, by device that came
    skipped: int = 0  # rows that were left out for all devices at once: of the same people
