"""Measures the link between a device and an edge by what crosses it."""

from collections import deque
from dataclasses import dataclass

_WEIGHT = 0.3  # of the newest transfer
_LEAST_BYTES, _LEAST_SECONDS = 4096, 0.001  # of a transfer that tells of the link, and not of latency or buffers
_ROUND_TRIPS = 8  # of which the shortest counts


@dataclass(frozen=True, kw_only=True)
class MeasuredLink:
    """A link and its edge as a device has measured them: what policies choose by.

    Rates in Mbit/s; what is not known yet is as the device was told to assume. `rtt_seconds`: of a round trip without
    data. `queue_seconds`: that a question would wait at the edge, by its own word. `link_seconds`: that the link is
    still busy with what waits to be sent. `load`: share of the edge's time that its model computes, below 1.
    """

    up_mbit: float
    down_mbit: float
    rtt_seconds: float = 0.0
    queue_seconds: float = 0.0
    link_seconds: float = 0.0
    load: float = 0.0


class LinkMeter:
    """Keeps bytes and seconds of one link's transfers; on one thread.

    A transfer's seconds are those between question and answer that neither the edge nor an empty round trip explains.
    They are the upload's where more went up than came down, and else the download's.
    """

    def __init__(self, assumed_mbit: float) -> None:
        self._assumed = assumed_mbit
        self._up: float | None = None
        self._down: float | None = None
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
        self._queue = self._load = 0.0
        self.up_bytes = self.down_bytes = 0  # in all

    def crossed(self, up_bytes: int, down_bytes: int, seconds: float, queue_seconds: float) -> None:
        """Take note of a question and its answer: `seconds` in between, without those at the edge."""
        self.up_bytes += up_bytes
        self.down_bytes += down_bytes
        self._queue += _WEIGHT * (queue_seconds - self._queue)
        left = seconds - min(self._round_trips, default=0.0)
        if max(up_bytes, down_bytes) < _LEAST_BYTES or left < _LEAST_SECONDS:
            return
        if up_bytes >= down_bytes:
            self._up = _mean(self._up, up_bytes * 8e-6 / left)
        else:
            self._down = _mean(self._down, down_bytes * 8e-6 / left)

    def echoed(self, seconds: float, queue_seconds: float, load: float) -> None:
        """Take note of a probe's round trip, and of what the edge said of itself."""
        self._round_trips.append(seconds)
        self._queue, self._load = queue_seconds, load

    def state(self, unsent: int) -> MeasuredLink:
        """Returns what is known; `unsent` bytes wait at the device."""
        up = self._assumed if self._up is None else self._up
        return MeasuredLink(
            up_mbit=up,
            down_mbit=self._assumed if self._down is None else self._down,
            rtt_seconds=min(self._round_trips, default=0.0),
            queue_seconds=self._queue,
            link_seconds=unsent * 8e-6 / up,
            load=min(self._load, 0.99),
        )


def _mean(before: float | None, now: float) -> float:
    return now if before is None else before + _WEIGHT * (now - before)
