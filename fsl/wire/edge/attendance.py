"""Who takes part in a round at an edge, and what the round came to."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fsl.round.edge_server import Session
from fsl.trainers.uploads import Upload


@dataclass
class Attendance:
    """One device in this round, as its edge sees it."""

    device: int
    due: float | None = None  # when it is lost, if nothing comes until then
    opened: bool = False  # at the edge server: it may train
    joined: bool = False
    finished: bool = False  # nothing more to upload
    settled: bool = False  # closed, or lost
    away: bool = False  # at another edge, or on its way: neither served nor waited for
    leaving: int | None = None  # the edge that it moves to when all its uploads are answered
    served: int = -1  # the newest upload that the trainer has seen
    relay: bytes = b""
    factors: Tensor | None = None  # of its last step, where one clip is over front and back
    update: float = 0.0  # the squared norm of its part of its update, where devices are protected as a whole
    uploads: deque[Upload] = field(default_factory=deque)


@dataclass(frozen=True)
class EdgeOutcome:
    """What a round at an edge came to."""

    closed: Sequence[Session]  # of the devices that finished, in the order in which they did
    lost: Mapping[int, str]  # why
    failed: str | None  # what its trainer raised; then nothing of it counts
    moved_bytes: Mapping[int, int] = field(default_factory=dict)  # from edge to edge, of those that came
