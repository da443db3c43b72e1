"""Joins questions that wait at the same time into batches, and bounds how many wait and for how long."""

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fsl.argument_types import checks_types
from fsl.errors import ConfigError

_WEIGHT = 0.2  # of the newest batch in the mean of seconds a row


@checks_types()
@dataclass(frozen=True)
class Batching:
    """How questions are joined: up to `max_rows` of one point, which wait `max_wait_seconds` at most for each other.

    The time counts from the arrival of the oldest. A question is never divided: one of more rows is computed alone. The
    default joins none. Joined rows may differ in their last bits from rows that are computed alone.
    """

    max_rows: int = 1
    max_wait_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.max_rows < 1:
            raise ConfigError(f"max_rows={self.max_rows}: a batch has at least 1 row")
        if not 0 <= self.max_wait_seconds < math.inf:
            raise ConfigError(f"max_wait_seconds={self.max_wait_seconds}: it is a number of seconds from 0 on")


class Waits(Protocol):
    """A question that waits."""

    @property
    def key(self) -> Hashable:
        """What questions that can be joined have in common."""

    @property
    def rows(self) -> int:
        """How many rows it has."""

    @property
    def size(self) -> int:
        """How many bytes it takes while it waits."""

    @property
    def arrived(self) -> float:
        """When it came, by the queue's clock."""

    @property
    def expires(self) -> float:
        """When nobody waits for its answer any more."""

    @property
    def asker(self) -> Hashable:
        """Whoever asked."""

    @property
    def left(self) -> bool:
        """Whether whoever asked is gone."""


Q = TypeVar("Q", bound=Waits)


@dataclass(frozen=True)
class DueBatch(Generic[Q]):
    """Questions to be computed together, and those that expired before."""

    questions: list[Q]
    expired: list[Q]


class _WaitingLine(Generic[Q]):
    def __init__(self) -> None:
        self.questions: deque[Q] = deque()
        self.rows = 0


class BatchQueue(Generic[Q]):
    """Questions that wait, each kind first in first out. Times are the caller's; not for two threads at once.

    `rows` and `size`: of all that may wait; a question for an empty queue is always taken. Where it is full, an asker
    still gets its share, rows and bytes divided by those who ask, and twice as many wait at most: who floods an edge
    keeps nobody else out.
    """

    def __init__(self, batching: Batching, rows: int, size: int) -> None:
        self.batching = batching
        self.rows = 0  # that wait
        self._size = 0
        self._most = rows, size
        self._lines: dict[Hashable, _WaitingLine[Q]] = {}
        self._held: dict[Hashable, tuple[int, int]] = {}  # rows and bytes by asker
        self._row_seconds = 0.0  # mean

    @property
    def seconds(self) -> float:
        """How long all that waits will take, by the batches so far."""
        return self.rows * self._row_seconds

    def put(self, one: Q) -> bool:
        """Take a question; returns False where too much waits already."""
        if self.rows and not self._has_room(one):
            return False
        self._hold(one, 1)
        line = self._lines.setdefault(one.key, _WaitingLine())
        line.questions.append(one)
        line.rows += one.rows
        return True

    def next(self, now: float) -> DueBatch[Q] | None:
        """Take the batch that has waited longest of those that are due; None where none is."""
        due = [line for line in self._lines.values() if self._due_at(line) <= now]
        if not due:
            return None
        line = min(due, key=lambda line: line.questions[0].arrived)
        batch, expired, rows = list[Q](), list[Q](), 0
        while line.questions and (not batch or rows + line.questions[0].rows <= self.batching.max_rows):
            one = self._taken(line)
            if one.left:
                continue
            if one.expires <= now:
                expired.append(one)
            else:
                batch.append(one)
                rows += one.rows
        self._lines = {key: line for key, line in self._lines.items() if line.questions}
        return DueBatch(batch, expired)

    def due(self) -> float:
        """Returns when the next batch is due, in the past where one is now; infinity where nothing waits."""
        return min(map(self._due_at, self._lines.values()), default=math.inf)

    def computed(self, rows: int, seconds: float) -> None:
        """Take note of how long a batch took."""
        each = seconds / rows
        self._row_seconds += (each - self._row_seconds) * (_WEIGHT if self._row_seconds else 1.0)

    def _has_room(self, one: Q) -> bool:
        rows, size = self._most
        if self.rows + one.rows <= rows and self._size + one.size <= size:
            return True
        askers = len(self._held) + (one.asker not in self._held)
        held_rows, held_size = self._held.get(one.asker, (0, 0))
        if (held_rows + one.rows) * askers > rows or (held_size + one.size) * askers > size:
            return False
        return self.rows + one.rows <= 2 * rows and self._size + one.size <= 2 * size

    def _hold(self, one: Q, sign: int) -> None:
        rows, size = self._held.pop(one.asker, (0, 0))
        if rows + sign * one.rows:
            self._held[one.asker] = rows + sign * one.rows, size + sign * one.size
        self.rows += sign * one.rows
        self._size += sign * one.size

    def _due_at(self, line: _WaitingLine[Q]) -> float:
        if line.rows >= self.batching.max_rows:
            return -math.inf
        return line.questions[0].arrived + self.batching.max_wait_seconds

    def _taken(self, line: _WaitingLine[Q]) -> Q:
        one = line.questions.popleft()
        line.rows -= one.rows
        self._hold(one, -1)
        return one
