"""Computes the rest of the model on a device whose edges are late or gone."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fsl.inference.serving.pending import PendingQuestion
from fsl.inference.split_points import SplitPoints

log = logging.getLogger(__name__)
_WEIGHT = 0.3  # of the newest time in the mean


class ModelAtHand:
    """Settles questions by the device's own copy of the model, one after the other on a thread of its own.

    `lock`: held while the model computes, since another thread computes its first part.
    """

    def __init__(self, points: SplitPoints, lock: threading.Lock, clock: Callable[[], float]) -> None:
        self._points = points
        self._lock = lock
        self._clock = clock
        self._row_seconds: dict[str, float] = {}  # of the rest behind a point, mean
        self._worker = ThreadPoolExecutor(1, "device-rest")

    def seconds(self, one: PendingQuestion) -> float:
        """Returns how long the rest takes for a question, by those before; 0 while none was computed."""
        return one.rows * self._row_seconds.get(one.point, 0.0)

    def begin(self, one: PendingQuestion, word: str, reason: str) -> None:
        """Compute and settle a question; `word` and `reason` say why."""
        self._worker.submit(self._settle, one, word, reason)

    def close(self) -> None:
        """End its thread when what it computes is done."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _settle(self, one: PendingQuestion, word: str, reason: str) -> None:
        if one.done:
            return
        try:
            with self._lock:
                began = self._clock()
                outputs = self._points.tail(one.point, one.values)
                now = self._clock()
        except Exception as error:
            one.fail(error)
            return
        seconds = now - began
        before = self._row_seconds.get(one.point, seconds / one.rows)
        self._row_seconds[one.point] = before + _WEIGHT * (seconds / one.rows - before)
        one.settle_at_hand(outputs, now, compute=seconds, reason=reason, word=word)
