"""Where questions wait for the model, and where it answers them, batch after batch."""

import logging
import math
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from fsl.codecs.codec import Payload
from fsl.errors import SplitError, WireError
from fsl.inference.serving.batching import Batching, BatchQueue, DueBatch
from fsl.inference.serving.edge_counts import EdgeCounts, Outcome
from fsl.inference.serving.question import Outgoing, Post, WaitingQuestion
from fsl.inference.split_points import SplitPoints
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import answered_record, unanswered_record, whole_payload
from fsl.quoting import one_line
from fsl.segments.tensor_trees import Values
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

    def _answer(self, batch: DueBatch[WaitingQuestion]) -> None:
        began = self._clock()
        for one in batch.expired:
            self._fail(one, pb.EXPIRED, "its time was over before its turn came", began)
        came = [(one, values) for one in batch.questions if (values := self._decoded(one, began)) is not None]
        if not came:
            return
        try:
            outputs, rows = self._outputs(came), sum(one.rows for one, _ in came)
        except Exception as error:
            if len(came) == 1:
                self._tell(came[0][0], error, began)
                return
            for one, values in came:
                self._answer_alone(one, values, began)
            return
        self._give(came, outputs, rows, began)

    def _answer_alone(self, one: WaitingQuestion, values: Values, began: float) -> None:
        try:
            outputs = self._outputs([(one, values)])
        except Exception as error:
            self._tell(one, error, began)
            return
        self._give([(one, values)], outputs, one.rows, began)

    def _decoded(self, one: WaitingQuestion, began: float) -> Values | None:
        try:
            return one.writer.decode(whole_payload(one.message, one.data), one.rows)
        except WireError as error:
            self._fail(one, pb.MISFIT, str(error), began)
        except Exception as error:  # of a codec, for what somebody sent
            self._fail(one, pb.MISFIT, f"{type(error).__name__}: {error}", began)
        return None

    def _outputs(self, came: list[tuple[WaitingQuestion, Values]]) -> Tensor:
        first, rows = came[0][0], sum(one.rows for one, _ in came)
        values = first.writer.gate.joined([values for _, values in came], rows)
        outputs = self._points.tail(first.key, values.to(self._accelerator))
        if len(outputs) != rows:
            raise SplitError(f"the model gives {len(outputs)} outputs for {rows} rows")
        return outputs.cpu().contiguous()

    def _give(self, came: list[tuple[WaitingQuestion, Values]], outputs: Tensor, rows: int, began: float) -> None:
        now = self._clock()
        seconds = now - began
        self._note(rows, seconds, now)
        waits = [began - one.arrived for one, _ in came]
        self._counts.computed(rows, seconds, waits)
        self._counts.ended("answered", len(came))
        parts = [outputs] if len(came) == 1 else outputs.split([one.rows for one, _ in came])
        self._post.deliver(
            [
                Outgoing(
                    one.asker,
                    answered_record(
                        id=one.message.id,
                        queue_seconds=wait,
                        compute_seconds=seconds,
                        batch_rows=rows,
                        outputs=Payload("identity", (("values", part),)),
                    ),
                )
                for (one, _), part, wait in zip(came, parts, waits, strict=True)
            ]
        )

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
