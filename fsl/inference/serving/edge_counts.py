"""Counts what an edge answers, in this process; Prometheus reads from the same calls."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["answered", "expired", "overloaded", "misfit", "failed"]


@dataclass(frozen=True)
class EdgeFigures:
    """What an edge has done so far: questions by outcome, batches and their rows, bytes, streams open and refused.

    `busy_seconds`: those in which the model computed.
    """

    outcomes: dict[Outcome, int]
    batches: int
    rows: int
    busy_seconds: float
    up_bytes: int
    down_bytes: int
    streams: int
    refused: dict[str, int]


class EdgeCounts:
    """Counts an edge's questions; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[Outcome] = Counter()
        self._refused: Counter[str] = Counter()
        self._batches = self._rows = self._up = self._down = self._streams = 0
        self._busy = 0.0

    @property
    def figures(self) -> EdgeFigures:
        """What has been counted so far."""
        with self._lock:
            return EdgeFigures(
                dict(self._outcomes),
                self._batches,
                self._rows,
                self._busy,
                self._up,
                self._down,
                self._streams,
                dict(self._refused),
            )

    def watch(self, waiting: Callable[[], int]) -> None:
        """Have the number of waiting rows read by `waiting`, whenever somebody wants to know."""

    def ended(self, outcome: Outcome, questions: int = 1) -> None:
        """Count questions that got this answer."""
        with self._lock:
            self._outcomes[outcome] += questions

    def computed(self, rows: int, seconds: float, waits: Sequence[float]) -> None:
        """Count a batch of so many rows, and the seconds that each of its questions had waited."""
        with self._lock:
            self._batches += 1
            self._rows += rows
            self._busy += seconds

    def came(self, size: int) -> None:
        """Count bytes of a frame that came."""
        with self._lock:
            self._up += size

    def sent(self, size: int) -> None:
        """Count bytes of a frame that was sent."""
        with self._lock:
            self._down += size

    def opened(self) -> None:
        """Count a stream that is open."""
        with self._lock:
            self._streams += 1

    def closed(self) -> None:
        """Count a stream that has ended."""
        with self._lock:
            self._streams -= 1

    def refused(self, code: str) -> None:
        """Count a stream that was turned away, by gRPC status code."""
        with self._lock:
            self._refused[code] += 1
