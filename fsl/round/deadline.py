"""When a round is closed for whoever has not finished."""

import time


class Deadline:
    """A round's: it passes `seconds` after now, and a last time after as long again."""

    def __init__(self, seconds: float, grace: float = 0.0):
        self.seconds = seconds
        now = time.monotonic() + grace  # whoever goes by another's word waits for it a little longer
        self._ends = [("first", now + seconds), ("last", now + 2 * seconds)]

    @property
    def reason(self) -> str:
        """What is said of who is lost by it."""
        return f"it had not finished at the round's deadline of {self.seconds:g} s"

    def left(self) -> float:
        """Seconds until it passes the next time; 0 where it has."""
        return max(0.0, self._ends[0][1] - time.monotonic()) if self._ends else 0.0

    def passed(self) -> str:
        """Which time it has passed since this was asked, "first" or "last"; nothing where it has not."""
        found = ""
        while self._ends and self._ends[0][1] <= time.monotonic():
            found = self._ends.pop(0)[0]
        return found
