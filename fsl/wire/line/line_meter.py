"""Counts how a node's line to a run's cloud fares; does nothing without a meter."""


class LineMeter:
    """Counts nothing; a subclass counts. The line's thread calls it."""

    def opened(self, again: bool) -> None:
        """A stream is open; `again`: the line had one before."""

    def broke(self) -> None:
        """The stream that was open has ended."""
