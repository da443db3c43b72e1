"""Measures the link between a device and an edge by what crosses it."""

from collections import deque

from fsl.inference.planning import LinkState, RateEstimator

_WEIGHT = 0.3  # of the newest answer in the mean of waiting
_ROUND_TRIPS = 8  # of which the shortest counts
_MOST_LOAD = 0.99


class LinkMeter:
    """Keeps what one link's transfers and probes told, as policies take it; on one thread.

    A transfer's seconds are those between question and answer that neither the edge nor an empty round trip explains.
    They are the upload's where more went up than came down, and else the download's. Until a rate is known it is
    `assumed_mbit`.
    """

    def __init__(self, assumed_mbit: float) -> None:
        self._assumed = assumed_mbit
        self._up, self._down = RateEstimator(), RateEstimator()
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
        self._queue = self._load = 0.0
        self.up_bytes = self.down_bytes = 0  # in all

    def crossed(self, up_bytes: int, down_bytes: int, seconds: float, queue_seconds: float) -> None:
        """Take note of a question and its answer: `seconds` in between, without those at the edge."""
        self.up_bytes += up_bytes
        self.down_bytes += down_bytes
        self._queue += _WEIGHT * (queue_seconds - self._queue)
        left = max(0.0, seconds - min(self._round_trips, default=0.0))
        if up_bytes >= down_bytes:
            self._up.observe(up_bytes, left)
        else:
            self._down.observe(down_bytes, left)

    def echoed(self, seconds: float, queue_seconds: float, load: float) -> None:
        """Take note of a probe's round trip, and of what the edge said of itself."""
        self._round_trips.append(seconds)
        self._queue, self._load = queue_seconds, load

    def state(self, unsent: int) -> LinkState:
        """Returns what is known; `unsent` bytes wait at the device."""
        up = self._assumed if self._up.mbit is None else self._up.mbit
        return LinkState(
            up_mbit=up,
            down_mbit=self._assumed if self._down.mbit is None else self._down.mbit,
            rtt_seconds=min(self._round_trips, default=0.0),
            queue_seconds=self._queue,
            link_seconds=unsent * 8e-6 / up,
            load=min(self._load, _MOST_LOAD),
        )
