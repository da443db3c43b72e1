"""Seconds that bytes take over a link."""

import math


def transfer_seconds(size: float, mbit: float) -> float:
    """Returns the seconds that so many bytes take at a rate in Mbit/s: none for no bytes, else infinity at 0."""
    if not size:
        return 0.0
    return size * 8e-6 / mbit if mbit else math.inf
