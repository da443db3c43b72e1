"""Closes a round for devices that have not finished in time."""

import math
import time


class Deadline:
    """A round's deadline: it passes `seconds` after its creation, and a second and last time as long after that.

    Another thread may `end` it.
    """

    def __init__(self, seconds: float = math.inf, grace: float = 0.0):
        self.seconds = seconds
        self._ended = ""
        now = time.monotonic() + grace  # a node that depends on another's deadline waits a little longer
        self._ends = [("first", now + seconds), ("last", now + 2 * seconds)]

    @property
    def reason(self) -> str:
        """The reason given for devices that it loses."""
        return self._ended or f"it had not finished at the round's deadline of {self.seconds:g} s"

    def end(self, reason: str) -> None:
        """Let it pass now, for the last time, since the whole round is given up."""
        self._ended, self._ends = reason, [("last", 0.0)]

    def left(self) -> float:
        """Returns the seconds until it next passes; 0 where it has."""
        return max(0.0, self._ends[0][1] - time.monotonic()) if self._ends else 0.0

    def passed(self) -> str:
        """Returns "first" or "last" once each after it has passed that time; "" otherwise."""
        found = ""
        while self._ends and self._ends[0][1] <= time.monotonic():
            found = self._ends.pop(0)[0]
        return found
