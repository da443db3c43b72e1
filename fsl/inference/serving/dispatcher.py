"""Finds an answer for each question of a device: at the first edge that takes it, at the next one, or at hand."""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from fsl.errors import WireError
from fsl.inference.serving.answer import UnansweredError
from fsl.inference.serving.device_counts import DeviceCounts
from fsl.inference.serving.edge_link import EdgeLink
from fsl.inference.serving.pending import PendingQuestion
from fsl.inference.serving.point_gate import PointGate
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import whole_payload
from fsl.quoting import one_line

log = logging.getLogger(__name__)
_AGAIN = 0.05  # seconds until a question that no edge takes, and that the device may not compute, tries again
_FULL = 5.0  # seconds, at most, for which an edge that was overloaded is not asked


class LocalRest(Protocol):
    """Computes the rest of the model on the device."""

    def seconds(self, one: PendingQuestion) -> float:
        """Returns how long that takes for a question, by those before."""

    def begin(self, one: PendingQuestion, word: str, reason: str) -> None:
        """Compute and settle it on another thread."""


class Dispatcher:
    """Asks edges in their order, and settles each question once; all of it on the network thread.

    A question goes to the first edge that takes it. Where the stream breaks, or an edge cannot answer, it goes to the
    next one that has not had it, and then to `local`; None: it waits for an edge until its time is over. A question is
    computed at hand, too, where its answer would else be late: `local` begins as long before the deadline as it takes,
    or when an edge has not answered within `patience` seconds.
    """

    def __init__(
        self,
        local: LocalRest | None,
        outputs: PointGate,
        patience: float,
        counts: DeviceCounts,
        clock: Callable[[], float],
    ) -> None:
        self.links: Sequence[EdgeLink] = ()
        self._local = local
        self._outputs = outputs
        self._patience = patience
        self._counts = counts
        self._clock = clock
        self._parked: dict[PendingQuestion, None] = {}  # wait until an edge takes them

    def ask(self, one: PendingQuestion) -> None:
        """Find an answer for a question."""
        if one.done or one.local:
            return
        now = self._clock()
        if now >= one.until:
            self._without_edge(one, "late", "no time was left for an edge")
            return
        for link in self.links:
            if link.address not in one.tried and link.takes(one, now) and link.ask(one, now):
                one.edge = link.address
                self._watch(one, now)
                return
        if self._local is None:
            one.tried.clear()  # whoever could not answer may be able to by then
            self._parked[one] = None
            asyncio.get_running_loop().call_later(_AGAIN, self._unpark, one)
            return
        self._without_edge(one, "behind" if any(link.is_open for link in self.links) else "gone", self._why(one))

    # What links say.

    def opened(self, link: EdgeLink) -> None:
        """Hear that a link takes questions now."""
        self._counts.opened()
        log.info("edge %s is open", link.address)
        for one in [*self._parked]:
            self._unpark(one)

    def broke(self, link: EdgeLink, questions: Sequence[PendingQuestion], reason: str) -> None:
        """Ask elsewhere what a broken link leaves without an answer."""
        self._counts.broke()
        for one in questions:
            self._elsewhere(link, one, reason)

    def answered(self, link: EdgeLink, one: PendingQuestion, said: pb.Answered, data: memoryview, size: int) -> None:
        """Settle a question with what an edge computed; WireError where that cannot be the model's outputs."""
        try:
            outputs = self._outputs_of(one, said, data)
        except WireError as error:
            self._elsewhere(link, one, str(error))
            raise
        self._counts.crossed(one.up_bytes, size)
        first = one.settle_by_edge(
            outputs,
            self._clock(),
            edge=link.address,
            queue=said.queue_seconds,
            compute=said.compute_seconds,
            batch_rows=said.batch_rows,
        )
        if first:
            self._unwatch(one)

    def unanswered(self, link: EdgeLink, one: PendingQuestion, said: pb.Unanswered) -> None:
        """Ask elsewhere what an edge cannot answer."""
        if said.failing == pb.OVERLOADED and 0 < said.retry_seconds < math.inf:
            link.full_until = self._clock() + min(said.retry_seconds, _FULL)
        self._elsewhere(link, one, one_line(said.reason, 200))

    def _outputs_of(self, one: PendingQuestion, said: pb.Answered, data: memoryview) -> Tensor:
        payload = whole_payload(said, data)
        if payload.codec != "identity" or payload.structure or [name for name, _ in payload.arrays] != ["values"]:
            raise WireError("an answer is no tensor of outputs")
        outputs = self._outputs.check(payload.arrays[0][1], one.rows)
        assert isinstance(outputs, Tensor)
        return outputs

    # What becomes of a question.

    def _elsewhere(self, link: EdgeLink, one: PendingQuestion, reason: str) -> None:
        if one.done or one.local or one.edge != link.address:
            return  # it is asked elsewhere already
        self._unwatch(one)
        one.tried.add(link.address)
        one.reasons.append(f"{link.address}: {reason}")
        self._counts.asked_again()
        self.ask(one)

    def _watch(self, one: PendingQuestion, now: float) -> None:
        least = one.until if self._local is None else one.until - self._local.seconds(one)
        wait = min(least - now, self._patience)
        one.timer = asyncio.get_running_loop().call_later(max(0.0, wait), self._late, one, wait < self._patience)

    def _unwatch(self, one: PendingQuestion) -> None:
        if one.timer is not None:
            one.timer.cancel()
            one.timer = None

    def _late(self, one: PendingQuestion, at_deadline: bool) -> None:
        if one.done or one.local:
            return
        reason = f"no answer within {self._clock() - one.sent:.3g} s"
        if at_deadline:
            self._without_edge(one, "late", f"{one.edge}: {reason}")
            return
        self._elsewhere(next(link for link in self.links if link.address == one.edge), one, reason)

    def _without_edge(self, one: PendingQuestion, word: str, reason: str) -> None:
        if self._local is not None:
            one.local = True
            self._local.begin(one, word, reason)
        else:
            one.fail(UnansweredError(f"no edge has answered a question at {one.point}: {reason}"))

    def _why(self, one: PendingQuestion) -> str:
        """Returns why each edge was not asked, or has no answer."""
        told = {reason.partition(": ")[0] for reason in one.reasons}
        others = [f"{link.address}: {link.reason or 'it takes no more'}" for link in self.links]
        return "; ".join([*one.reasons, *(reason for reason in others if reason.partition(": ")[0] not in told)])

    def _unpark(self, one: PendingQuestion) -> None:
        if self._parked.pop(one, one) is None:
            self.ask(one)
