"""Where questions wait for the model, and where it answers them, batch after batch."""

import logging
import math
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from fsl.errors import SplitError
from fsl.inference.serving.batch_input import BatchInput, read_batch
from fsl.inference.serving.batching import Batching, BatchQueue, DueBatch
from fsl.inference.serving.edge_counts import EdgeCounts, Outcome
from fsl.inference.serving.question import Outgoing, Post, WaitingQuestion
from fsl.inference.split_points import SplitPoints
from fsl.messages import inference_pb2 as pb
from fsl.messages.answer_records import AnswerOf, answered_records
from fsl.messages.inference_records import unanswered_record
from fsl.quoting import one_line
from fsl.wire.seldom import Seldom

log = logging.getLogger(__name__)
_WINDOW = 2.0  # seconds over which the load is a mean
_FAILING: dict[pb.Failing, Outcome] = {
    pb.EXPIRED: "expired",
    pb.OVERLOADED: "overloaded",
    pb.MISFIT: "misfit",
    pb.FAILED: "failed",
}


class Desk:
    """Takes questions on the network thread, and answers them on the thread that computes.

    Whatever a model raises is that question's answer, and the desk goes on; of a batch that fails each question is
    computed alone. `clock` gives seconds that never fall.
    """

    def __init__(
        self,
        points: SplitPoints,
        batching: Batching,
        rows: int,
        size: int,
        post: Post,
        counts: EdgeCounts,
        clock: Callable[[], float],
    ) -> None:
        self._points = points
        self._queue: BatchQueue[WaitingQuestion] = BatchQueue(batching, rows, size)
        self._post = post
        self._counts = counts
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = False
        self._busy, self._busy_at = 0.0, clock()
        self._accelerator = next((p.device for p in points.model.parameters()), torch.device("cpu"))
        self._told = Seldom()  # failures in the log
        counts.watch(lambda: self._queue.rows)

    # On the network thread.

    def put(self, one: WaitingQuestion) -> None:
        """Take a question; one that has expired, or for which there is no room, is answered at once."""
        if one.expires <= one.arrived:
            self._fail(one, pb.EXPIRED, "no time was left when it came")
            return
        with self._changed:
            taken = self._queue.put(one)
            wait = self._queue.seconds
            if taken:
                self._changed.notify()
        if not taken:
            self._fail(one, pb.OVERLOADED, f"{self._queue.rows} rows wait already", retry=max(wait, 0.001))

    @property
    def waiting_seconds(self) -> float:
        """How long a question would wait now, by the batches so far."""
        return self._queue.seconds

    @property
    def load(self) -> float:
        """The share of the last seconds in which the model computed, from 0 to 1."""
        busy, at = self._busy, self._busy_at
        return min(1.0, busy * math.exp((at - self._clock()) / _WINDOW) / _WINDOW)

    def close(self) -> None:
        """Have `run` return after the present batch."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    # On the thread that computes.

    def run(self) -> None:
        """Answer questions until the desk is closed."""
        while not self._closed:
            with self._changed:
                while not self._closed and (wait := self._queue.due() - self._clock()) > 0:
                    self._changed.wait(None if wait == math.inf else wait)
            self.work()

    def work(self) -> bool:
        """Answer the batch that is due; returns whether there was one."""
        with self._changed:
            batch = self._queue.next(self._clock())
        if batch is None:
            return False
        self._answer(batch)
        return True

    def _answer(self, due: DueBatch[WaitingQuestion]) -> None:
        began = self._clock()
        for one in due.expired:
            self._fail(one, pb.EXPIRED, "its time was over before its turn came", began)
        batch = read_batch(due.questions)
        for one, reason in batch.misfits:
            self._fail(one, pb.MISFIT, reason, began)
        if not batch.questions:
            return
        try:
            outputs = self._outputs(batch)
        except Exception as error:
            if len(batch.questions) == 1:
                self._tell(batch.questions[0], error, began)
                return
            for alone in batch.each():
                self._answer_alone(alone, began)
            return
        self._give(batch, outputs, began)

    def _answer_alone(self, one: BatchInput, began: float) -> None:
        try:
            outputs = self._outputs(one)
        except Exception as error:
            self._tell(one.questions[0], error, began)
            return
        self._give(one, outputs, began)

    def _outputs(self, batch: BatchInput) -> Tensor:
        values = batch.joined().to(self._accelerator)
        outputs = self._points.tail(batch.questions[0].key, values)
        if len(outputs) != batch.rows:
            raise SplitError(f"the model gives {len(outputs)} outputs for {batch.rows} rows")
        return outputs.cpu().contiguous()

    def _give(self, batch: BatchInput, outputs: Tensor, began: float) -> None:
        now, rows = self._clock(), len(outputs)
        seconds = now - began
        self._note(rows, seconds, now)
        answers = [AnswerOf(one.message.id, one.rows, began - one.arrived) for one in batch.questions]
        self._counts.computed(rows, seconds, [one.queue_seconds for one in answers])
        self._counts.ended("answered", len(answers))
        said = answered_records(answers, outputs, seconds, rows)
        self._post.deliver([Outgoing(one.asker, record) for one, record in zip(batch.questions, said, strict=True)])

    def _note(self, rows: int, seconds: float, now: float) -> None:
        with self._changed:
            self._queue.computed(rows, seconds)
        self._busy, self._busy_at = self._busy * math.exp((self._busy_at - now) / _WINDOW) + seconds, now

    def _tell(self, one: WaitingQuestion, error: Exception, began: float) -> None:
        reason = f"{type(error).__name__}: {error}"
        if self._told.lets():
            more = "; others are not told for a minute" if self._told.is_last else ""
            log.warning("the model failed on a question at %s: %s%s", one.key, one_line(reason), more)
        self._fail(one, pb.FAILED, reason, began)

    def _fail(
        self, one: WaitingQuestion, failing: pb.Failing, reason: str, began: float | None = None, retry: float = 0.0
    ) -> None:
        self._counts.ended(_FAILING[failing])
        said = unanswered_record(
            id=one.message.id,
            failing=failing,
            reason=one_line(reason),
            queue_seconds=0.0 if began is None else began - one.arrived,
            retry_seconds=retry,
        )
        self._post.deliver([Outgoing(one.asker, said)])
