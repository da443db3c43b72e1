"""A question as it waits at an edge, and what becomes of it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fsl.inference.serving.served_codecs import CutWriter
from fsl.messages import inference_pb2 as pb

LONGEST_SECONDS = 3600.0  # for a deadline: who would wait longer asks again


class Asker(Hashable, Protocol):
    """Whoever asks over one stream."""

    gone: bool


@dataclass(slots=True, eq=False, kw_only=True)  # not frozen, which would take longer than all else at its arrival
class WaitingQuestion:
    """A question with its record, which is decoded when its turn comes. Times are those of the edge's clock."""

    asker: Asker
    message: pb.Question
    data: memoryview
    writer: CutWriter
    rows: int
    size: int
    arrived: float
    expires: float

    @property
    def key(self) -> str:
        """The point at which it crosses."""
        return self.writer.gate.point

    @property
    def left(self) -> bool:
        """Whether whoever asked is gone."""
        return self.asker.gone


class Outgoing(NamedTuple):
    """A record for whoever asked."""

    asker: Asker
    record: bytes


class Post(Protocol):
    """Takes records for askers, on any thread."""

    def deliver(self, records: Sequence[Outgoing]) -> None:
        """Send each to its asker, in this order."""
