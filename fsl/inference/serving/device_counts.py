"""Counts what a device asks and gets, in this process; Prometheus reads from the same calls."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fsl.inference.serving.answer import AnswerSeconds, Where


@dataclass(frozen=True)
class DeviceFigures:
    """What a device has asked so far: answers by where they were computed, and fallbacks by reason.

    `exits`: rows by the exit by which they left, "output" for the whole model. `unanswered`: questions without an
    answer. `asked_again`: questions that went to another edge. `streams`: that were opened, and `broken` of them.
    Bytes are those of questions that were answered, and of their answers.
    """

    answers: dict[Where, int]
    fallbacks: dict[str, int]
    exits: dict[str, int]
    unanswered: int
    asked_again: int
    streams: int
    broken: int
    up_bytes: int
    down_bytes: int


class DeviceCounts:
    """Counts a device's questions; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[Where] = Counter()
        self._fallbacks: Counter[str] = Counter()
        self._exits: Counter[str] = Counter()
        self._unanswered = self._again = self._streams = self._broken = self._up = self._down = 0

    @property
    def figures(self) -> DeviceFigures:
        """What has been counted so far."""
        with self._lock:
            return DeviceFigures(
                dict(self._answers),
                dict(self._fallbacks),
                dict(self._exits),
                self._unanswered,
                self._again,
                self._streams,
                self._broken,
                self._up,
                self._down,
            )

    def answered(self, where: Where, seconds: AnswerSeconds, fallback: str = "") -> None:
        """Count an answer; `fallback`: in a word, why the device computed what an edge was to compute."""
        with self._lock:
            self._answers[where] += 1
            if fallback:
                self._fallbacks[fallback] += 1

    def exited(self, rows: Mapping[str, int]) -> None:
        """Count the rows of an answer by the exits by which they left, "output" for the whole model."""
        with self._lock:
            self._exits.update(rows)

    def unanswered(self) -> None:
        """Count a question without an answer."""
        with self._lock:
            self._unanswered += 1

    def asked_again(self) -> None:
        """Count a question that went to another edge."""
        with self._lock:
            self._again += 1

    def opened(self) -> None:
        """Count a stream that was opened."""
        with self._lock:
            self._streams += 1

    def broke(self) -> None:
        """Count a stream that broke."""
        with self._lock:
            self._broken += 1

    def crossed(self, up_bytes: int, down_bytes: int) -> None:
        """Count the bytes of a question and of its answer."""
        with self._lock:
            self._up += up_bytes
            self._down += down_bytes
