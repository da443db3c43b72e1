"""Says when bytes have crossed a link whose rate changes: one piece after the other, first come, first served."""

import threading

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.planning import RateTrace

_PIECE_SECONDS = 0.001
_PIECE_BYTES = (1448, 64 << 10)  # a TCP segment, and as much as one read gives


class LinkSchedule:
    """One direction of a link, which several connections share; any thread may call, with the time by one clock.

    It is a token bucket of no depth: a piece begins to cross when it is there and those before it have crossed, and
    takes what `trace` (Mbit/s) says, whose second 0 was at `began`.
    """

    @checks_types("link.")
    def __init__(self, trace: RateTrace, began: float = 0.0) -> None:
        self.trace = trace
        self.bytes = 0  # that have a place on the link
        self._began = self._free = began  # free: from when on the next piece may cross
        self._lock = threading.Lock()

    def mbit(self, now: float) -> float:
        """Returns the rate of now."""
        return self.trace.at(max(0.0, now - self._began))

    def piece(self, now: float) -> int:
        """Returns how many bytes to send as one piece: what crosses in a millisecond, from 1,448 to 65,536."""
        least, most = _PIECE_BYTES
        return int(min(most, max(least, self.mbit(now) * 1e6 / 8 * _PIECE_SECONDS)))

    def crossed(self, now: float, size: int) -> float:
        """Give the next `size` bytes a place, and return when they have crossed: infinity for never.

        ConfigError for less than no bytes.
        """
        if size < 0:
            raise ConfigError(f"size={size}: a piece has at least 0 bytes")
        with self._lock:
            begins = max(now, self._free) - self._began
            self._free = self._began + self.trace.transfer_end(begins, size)
            self.bytes += size
            return self._free

    def restart(self, now: float) -> None:
        """Begin the trace anew, with an idle link."""
        with self._lock:
            self._began = self._free = now
