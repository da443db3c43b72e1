"""Keeps what strangers do from filling a log."""

import time


class Seldom:
    """Lets the first `most` of something through every `seconds`, and counts the others."""

    def __init__(self, most: int = 20, seconds: float = 60.0) -> None:
        self._most = most
        self._seconds = seconds
        self._began = float("-inf")
        self._seen = 0

    def lets(self) -> bool:
        """Returns whether this one is let through."""
        now = time.monotonic()
        if now - self._began > self._seconds:
            self._began, self._seen = now, 0
        self._seen += 1
        return self._seen <= self._most

    @property
    def is_last(self) -> bool:
        """Whether the one that was let through just now is the last for a while."""
        return self._seen == self._most
