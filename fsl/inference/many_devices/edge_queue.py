"""The edge's queue: one server, first in, first out."""

import numpy as np


class EdgeQueue:
    """The unfinished work of an edge, in seconds, in each of so many copies of it.

    Who comes waits for what was there before: for one server in order of arrival that is all there is to know, and a
    copy needs one number, no list of tasks.
    """

    def __init__(self, copies: int):
        self.backlog = np.zeros(copies)

    def clear(self, copies: np.ndarray) -> None:
        """Forget what was to do, in the copies of these indices."""
        self.backlog[copies] = 0.0

    def work(self, seconds: np.ndarray) -> None:
        """Let seconds (copies,) pass."""
        np.maximum(self.backlog - seconds, 0.0, out=self.backlog)

    def arrive(self, copies: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Take tasks (n,) of so many seconds each; returns the seconds (n,) that each waits.

        `copies` (n,) must not fall. Tasks that come at once in one copy are served in the order given.
        """
        before = np.cumsum(seconds) - seconds
        first = np.ones(len(copies), dtype=bool)
        first[1:] = copies[1:] != copies[:-1]
        before -= np.maximum.accumulate(np.where(first, before, -np.inf))
        waits = self.backlog[copies] + before
        np.add.at(self.backlog, copies, seconds)
        return waits
