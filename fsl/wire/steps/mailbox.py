"""Where the thread that computes waits: for events of other threads, and for the lean streams that it carries."""

import queue
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, Protocol, TypeVar

E = TypeVar("E")
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Carried(Protocol):
    """A stream that a mailbox watches while its thread waits."""

    closed: bool

    def fileno(self) -> int:
        """Returns the socket's number."""

    def interest(self) -> int:
        """Returns what it waits for: READ, WRITE, both, or 0."""

    def ready(self) -> None:
        """Read and write what can be read and written."""

    def push(self) -> None:
        """Write what can be written, without waiting."""

    def close(self) -> None:
        """End it."""

    @property
    def more(self) -> bool:
        """Returns whether something has come that no selector sees."""

    @property
    def unsent(self) -> bool:
        """Returns whether something waits to be sent."""


class Mailbox(Generic[E]):
    """Events for one thread. Every thread may `put` and `call`; `get` and all else is for the one that computes.

    Only while that thread waits are the streams read and written, but for what it writes itself: nothing is passed from
    thread to thread on a step's way.
    """

    def __init__(self) -> None:
        self._events: deque[E] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._streams: dict[Carried, int] = {}  # with what each waits for
        self._writing: set[Carried] = set()  # those of them that wait to write
        self._selector: selectors.BaseSelector | None = None
        self._asleep = False
        self._closed = False
        self._lock = threading.Lock()  # guards the end
        self._bell, self._heard = socket.socketpair()
        self._bell.setblocking(False)
        self._heard.setblocking(False)

    # For every thread.

    def put(self, event: E) -> None:
        """Leave an event."""
        self._events.append(event)
        self._wake()

    def call(self, function: Callable[..., None], *arguments: object) -> bool:
        """Have the computing thread call a function; returns False where it waits here no more."""
        with self._lock:
            if self._closed:
                return False
            self._calls.append(partial(function, *arguments))
        self._wake()
        return True

    def qsize(self) -> int:
        """Returns how many events nobody has taken."""
        return len(self._events)

    def left(self) -> list[E]:
        """Take all events at once, once the computing thread takes none any more."""
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def _wake(self) -> None:
        if self._asleep:  # it looks once more for events after it has said so
            try:
                self._bell.send(b"\0")
            except OSError:  # it is full of bells, or closed
                return

    # For the computing thread.

    def get(self, timeout: float | None = None) -> E:
        """Returns the next event; queue.Empty where none comes within so many seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._do_calls()
            if self._events:
                for stream in list(self._writing):  # whoever has much to hear need not wait until nothing else happens
                    stream.push()
                return self._events.popleft()
            if not self._wait(deadline):
                raise queue.Empty

    def watch(self, stream: Carried) -> None:
        """Watch a stream for what it waits for now; forget it where it is closed, and close it where all is over."""
        if stream.closed:
            self._forget(stream)
            return
        if self._closed:
            stream.close()
            return
        wanted, present = stream.interest(), self._streams.get(stream)
        if wanted != present:
            if present:
                self._opened().unregister(stream)
            if wanted:
                self._opened().register(stream, wanted, stream)
            self._streams[stream] = wanted
            (self._writing.add if wanted & WRITE else self._writing.discard)(stream)

    def _forget(self, stream: Carried) -> None:
        self._writing.discard(stream)
        if self._streams.pop(stream, 0):
            self._opened().unregister(stream)

    def flush(self, seconds: float) -> None:
        """Wait until all streams have sent what waits, at most so many seconds; what comes meanwhile is left."""
        deadline = time.monotonic() + seconds
        self._do_calls()  # a stream may be about to begin
        while any(stream.unsent for stream in self._streams) and time.monotonic() < deadline:
            self._wait(deadline, events=False)
            self._do_calls()

    def close(self) -> None:
        """End all streams; whatever is left or comes later, nobody takes."""
        with self._lock:  # whoever hears from `call` that all is over may close a stream itself
            self._closed = True
            for stream in list(self._streams):
                self._forget(stream)
                stream.close()
            if self._selector is not None:
                self._selector.close()
            self._bell.close()
            self._heard.close()
        self._do_calls()

    def _do_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def _opened(self) -> selectors.BaseSelector:
        if self._selector is None:
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._heard, READ, None)
        return self._selector

    def _wait(self, deadline: float | None, events: bool = True) -> bool:
        """Wait for something to happen (`events`: also an event); returns False where nothing did in time."""
        full = [stream for stream in self._streams if stream.more]
        left = 0.0 if full else None if deadline is None else max(0.0, deadline - time.monotonic())
        self._asleep = True
        try:
            ready = [] if self._calls or (events and self._events) else self._opened().select(left)
        finally:
            self._asleep = False
        for key, _ in ready:
            if key.data is None:
                self._silence()
            elif not key.data.closed:
                key.data.ready()
        for stream in full:
            if not stream.closed and stream.more:
                stream.ready()
        return bool(ready or full or self._events or self._calls)

    def _silence(self) -> None:
        try:
            while self._heard.recv(4096):
                pass
        except BlockingIOError:
            return
