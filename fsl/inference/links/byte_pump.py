"""Carries bytes from one socket to another in one direction, as a schedule says."""

import math
import queue
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from fsl.inference.links.link_schedule import LinkSchedule

_IDLE = 0.2  # seconds after which a thread looks whether it should end
_AHEAD = 0.02  # seconds by which pieces are read before they cross
_PIECES = 512  # on their way at most; the source waits then


class BytePump:
    """Two threads: one reads pieces and gives them a place on the link, the other delivers them when they have arrived.

    The first reads ahead of the link by 20 ms, so that who is woken up late leaves no gap; beyond that the source has
    to wait. `delay`: seconds from having crossed to having arrived. When the source has ended, so does the sink's side,
    after the last piece.
    """

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        schedule: LinkSchedule,
        delay: float,
        clock: Callable[[], float],
        ending: threading.Event,
    ) -> None:
        self._source, self._sink = source, sink
        self._schedule, self._delay, self._clock, self._ending = schedule, delay, clock, ending
        self._broken = threading.Event()
        self._sent: queue.Queue[tuple[float, bytes]] = queue.Queue(_PIECES)  # when it arrives, and what; b"": the end
        self._threads = [
            threading.Thread(target=run, name=f"link-{name}", daemon=True)
            for name, run in (("send", self._send), ("deliver", self._deliver))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        """Whether both threads have ended."""
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait for the threads, which end once they are told."""
        for thread in self._threads:
            thread.join()

    @property
    def _over(self) -> bool:
        return self._ending.is_set() or self._broken.is_set()

    def _send(self) -> None:
        with suppress(OSError):  # reset, or closed at the end
            while not self._over:
                if not _readable(self._source):
                    continue
                data = self._source.recv(self._schedule.piece(self._clock()))
                if not data:
                    break
                arrives = self._schedule.crossed(self._clock(), len(data))
                self._put(arrives + self._delay, data)
                self._wait(arrives - _AHEAD)
        self._put(self._clock() + self._delay, b"")

    def _put(self, arrives: float, data: bytes) -> None:
        while not self._over:
            with suppress(queue.Full):
                self._sent.put((arrives, data), timeout=_IDLE)
                return

    def _deliver(self) -> None:
        try:
            while not self._over:
                try:
                    arrives, data = self._sent.get(timeout=_IDLE)
                except queue.Empty:
                    continue
                self._wait(arrives)
                if not data:
                    break
                self._write(data)
        except OSError:  # the sink is gone: once both threads have ended the link closes the source, which hears so
            self._broken.set()
        with suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left and not self._over:
            if select.select([], [self._sink], [], _IDLE)[1]:
                left = left[self._sink.send(left) :]

    def _wait(self, until: float) -> None:
        """Wait until then, or for the end."""
        while not self._over and (left := until - self._clock()) > 0:
            self._ending.wait(min(left, _IDLE) if math.isfinite(left) else _IDLE)


def _readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], _IDLE)[0])
