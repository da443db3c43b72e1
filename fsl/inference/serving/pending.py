"""A question that a device has asked, until it has its one answer."""

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from fsl.codecs.codec import Payload
from fsl.inference.serving.answer import Answer, AnswerSeconds
from fsl.inference.serving.device_counts import DeviceCounts
from fsl.inference.serving.device_exits import LeftRows
from fsl.segments.tensor_trees import Values


@dataclass(eq=False, slots=True, kw_only=True)
class PendingQuestion:
    """A question with what crosses. Times are those of the device's clock; `asked` is when its caller did.

    Whoever settles it first gives the answer, and nobody else does; it is counted before anybody gets it. All
    but settling and `fail` is for the network thread.
    """

    point: str
    codec: int  # place among the device's codecs
    codec_name: str
    rows: int
    values: Values
    payload: Payload
    finished: Tensor | None  # outputs of all its rows: nothing is left to ask
    left: LeftRows | None  # rows of the batch beside its own, which are answered; None: the device has no exits
    counts: DeviceCounts
    asked: float
    until: float  # nobody waits any longer; infinity: no deadline
    head: float  # seconds
    encode: float
    future: "Future[Answer]" = field(default_factory=Future)
    edge: str = ""  # the address where it was asked last
    tried: set[str] = field(default_factory=set)  # addresses
    reasons: list[str] = field(default_factory=list)  # why these have no answer
    sent: float = 0.0
    up_bytes: int = 0
    local: bool = False  # the device computes it itself
    timer: asyncio.TimerHandle | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: bool = False

    @property
    def done(self) -> bool:
        """Whether it has its answer, or nobody wants it any more."""
        return self._done or self.future.cancelled()

    def settle_by_edge(
        self, outputs: Tensor, now: float, *, edge: str, queue: float, compute: float, batch_rows: int
    ) -> bool:
        """Give an edge's answer; returns whether nobody had given one."""
        network = max(0.0, now - self.sent - queue - compute)
        seconds = AnswerSeconds(
            head=self.head, encode=self.encode, network=network, queue=queue, edge=compute, total=now - self.asked
        )
        return self._settle(
            Answer(
                outputs=self._whole(outputs),
                exits=None if self.left is None else self.left.exits,
                where="edge",
                point=self.point,
                codec=self.codec_name,
                seconds=seconds,
                batch_rows=batch_rows,
                edge=edge,
            )
        )

    def settle_at_hand(self, outputs: Tensor, now: float, *, compute: float, reason: str, word: str = "") -> None:
        """Give the device's own answer, unless somebody has; `word` and `reason` say why it is not an edge's."""
        seconds = AnswerSeconds(head=self.head, encode=self.encode, local=compute, total=now - self.asked)
        whole = self._whole(outputs)
        self._settle(
            Answer(
                outputs=whole,
                exits=None if self.left is None else self.left.exits,
                where="device",
                point=self.point,
                codec=self.codec_name,
                seconds=seconds,
                batch_rows=self.rows if self.finished is None else len(whole),
                reason=reason,
            ),
            word,
        )

    def fail(self, error: Exception) -> None:
        """Say that there is no answer, unless somebody has given one."""
        if not self._first():
            return
        self.counts.unanswered()
        self.future.set_exception(error)

    def _settle(self, answer: Answer, word: str = "") -> bool:
        if not self._first():
            return False
        self.counts.answered(answer.where, answer.seconds, word)
        if self.left is not None:
            self.counts.exited(self.left.taken())
        self.future.set_result(answer)
        return True

    def _whole(self, outputs: Tensor) -> Tensor:
        return outputs if self.left is None else self.left.joined(outputs)

    def _first(self) -> bool:
        with self._lock:
            first, self._done = not self._done, True
        return first and self.future.set_running_or_notify_cancel()
