"""Records spans of one thread: events for a trace, up to a limit, and own times by kind, of all of them."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MOST_EVENTS = 200_000  # that a trace holds: some 30 MB, about what the viewers still load at ease
_here = threading.local()


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """One span that has ended: when it began and how long it took, in nanoseconds of `time.perf_counter_ns`."""

    name: str
    kind: str
    start: int
    took: int
    process: int  # 0: the cloud, n: node n
    about: Mapping[str, Any] | None = None


@dataclass(slots=True)
class KindTime:
    """What all spans of one kind took, in nanoseconds: `own` without what other spans took inside of them."""

    calls: int = 0
    took: int = 0
    own: int = 0

    def add(self, other: "KindTime") -> None:
        """Add the spans of the same kind that another recorder saw."""
        self.calls, self.took, self.own = self.calls + other.calls, self.took + other.took, self.own + other.own


@dataclass(slots=True)
class _OpenSpan:
    name: str
    kind: str
    process: int
    about: Mapping[str, Any] | None
    start: int = field(default_factory=time.perf_counter_ns)
    inside: int = 0  # what spans inside of it took


class SpanRecorder:
    """Spans of one thread, each within the one that was open when it began.

    Own times are without what other spans took inside; they add up to what the outermost span took.

    `limit`: events that are kept; later ones are only counted, by `left_out` and in `times`.
    """

    def __init__(self, limit: int = MOST_EVENTS):
        self.limit = limit
        self.events: list[SpanEvent] = []
        self.left_out = 0
        self.times: dict[str, KindTime] = {}
        self._open: list[_OpenSpan] = []

    def begin(
        self, kind: str, about: Mapping[str, Any] | None = None, *, name: str = "", process: int | None = None
    ) -> None:
        """Open a span; `process` is that of the span around it, unless given."""
        around = self._open[-1].process if self._open else 0
        self._open.append(_OpenSpan(name or kind, kind, around if process is None else process, about))

    def end(self, kind: str) -> None:
        """Close the innermost open span of this kind, and any that are still open inside of it."""
        if not any(span.kind == kind for span in self._open):
            return
        while self._close() != kind:
            pass

    @contextmanager
    def span(self, kind: str, *, name: str = "", process: int | None = None) -> Iterator[None]:
        """Open a span for as long as the block lasts."""
        self.begin(kind, name=name, process=process)
        try:
            yield
        finally:
            self.end(kind)

    def is_in(self, kind: str) -> bool:
        """Whether the innermost open span is of this kind, as where a method calls the one it overrides."""
        return bool(self._open) and self._open[-1].kind == kind

    def _close(self) -> str:
        span = self._open.pop()
        took = time.perf_counter_ns() - span.start
        if self._open:
            self._open[-1].inside += took
        self.times.setdefault(span.kind, KindTime()).add(KindTime(1, took, took - span.inside))
        if len(self.events) < self.limit:
            self.events.append(SpanEvent(span.name, span.kind, span.start, took, span.process, span.about))
        else:
            self.left_out += 1
        return span.kind


def recorder_here() -> SpanRecorder | None:
    """The recorder of this thread; None where nothing is recorded."""
    return getattr(_here, "recorder", None)


@contextmanager
def recorded_by(recorder: SpanRecorder) -> Iterator[None]:
    """Record this thread's spans by this recorder for as long as the block lasts."""
    before = recorder_here()
    _here.recorder = recorder
    try:
        yield
    finally:
        _here.recorder = before
