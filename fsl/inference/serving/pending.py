"""A question that a device has asked, until it has its one answer."""

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from fsl.codecs.codec import Payload
from fsl.inference.serving.answer import Answer, AnswerSeconds, Where
from fsl.segments.tensor_trees import Values


@dataclass(eq=False, slots=True, kw_only=True)
class PendingQuestion:
    """A question with what crosses. Times are those of the device's clock; `asked` is when its caller did.

    Whoever settles it first gives the answer, and nobody else does. All but `settle` and `fail` is for one thread at a
    time.
    """

    point: str
    codec: int  # place among the device's codecs
    codec_name: str
    rows: int
    values: Values
    payload: Payload
    asked: float
    until: float  # nobody waits any longer; infinity: no deadline
    head: float
    encode: float
    future: "Future[Answer]" = field(default_factory=Future)
    tried: set[str] = field(default_factory=set)  # addresses of edges
    sent: float = 0.0
    up_bytes: int = 0
    local: bool = False  # the device computes it itself
    timer: asyncio.TimerHandle | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: bool = False

    @property
    def done(self) -> bool:
        """Whether it has its answer."""
        return self._done

    def settle(
        self,
        outputs: Tensor,
        where: Where,
        now: float,
        *,
        batch_rows: int,
        edge: str = "",
        reason: str = "",
        network: float = 0.0,
        queue: float = 0.0,
        compute: float = 0.0,
    ) -> bool:
        """Give the answer; returns whether it is the first. `compute`: seconds of the rest of the model."""
        if not self._first():
            return False
        seconds = AnswerSeconds(
            head=self.head,
            encode=self.encode,
            network=network,
            queue=queue,
            edge=compute if where == "edge" else 0.0,
            local=compute if where == "device" else 0.0,
            total=now - self.asked,
        )
        self.future.set_result(
            Answer(
                outputs=outputs,
                where=where,
                point=self.point,
                codec=self.codec_name,
                seconds=seconds,
                batch_rows=batch_rows,
                edge=edge,
                reason=reason,
            )
        )
        return True

    def fail(self, error: Exception) -> bool:
        """Say that there is no answer; returns whether nobody had given one."""
        if not self._first():
            return False
        self.future.set_exception(error)
        return True

    def _first(self) -> bool:
        with self._lock:
            first, self._done = not self._done, True
        return first and self.future.set_running_or_notify_cancel()
