"""Estimates a link's rate from the transfers that were seen."""

import math
from collections import deque
from typing import Literal

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, one_of

Average = Literal["ewma", "harmonic"]


class RateEstimator:
    """The rate of a link in Mbit/s, from bytes and seconds of what crossed it, latency not among the seconds.

    "ewma" keeps 1 - `weight` of what it knew at each transfer. "harmonic" is that of the last `last` rates, which one
    lucky transfer cannot lift. A transfer of fewer than `least_bytes`, or of less than `least_seconds`, is passed over:
    it tells of latency, of buffers or of a loopback, and not of the link. Until one counts, the rate is `initial_mbit`,
    or not known.
    """

    @checks_types()
    def __init__(
        self,
        average: Average = "ewma",
        *,
        weight: float = 0.3,
        last: int = 5,
        least_bytes: int = 4096,
        least_seconds: float = 0.001,
        initial_mbit: float | None = None,
    ):
        one_of("average", average, ("ewma", "harmonic"))
        if not 0 < weight <= 1 or last < 1 or least_bytes < 1 or not least_seconds >= 0:
            raise ConfigError(
                f"weight={weight}, last={last}, least_bytes={least_bytes}, least_seconds={least_seconds}: the weight "
                "must be above 0 and 1 at most, last and least_bytes at least 1, least_seconds at least 0"
            )
        if initial_mbit is not None and not 0 <= initial_mbit < math.inf:
            raise ConfigError(f"initial_mbit={initial_mbit}: give a finite rate of at least 0, or None")
        self.average, self.weight = average, weight
        self.least_bytes, self.least_seconds = least_bytes, least_seconds
        self._rates: deque[float] = deque(maxlen=last)
        self._mbit = initial_mbit

    @property
    def mbit(self) -> float | None:
        """The estimated rate; None where nothing tells it."""
        return self._mbit

    @checks_types()
    def observe(self, size: float, seconds: float) -> bool:
        """Take note of a transfer; returns whether it counted."""
        if not (math.isfinite(size) and math.isfinite(seconds)) or size < 0 or seconds < 0:
            raise ConfigError(f"size={size}, seconds={seconds}: both must be finite and at least 0")
        if size < self.least_bytes or seconds < self.least_seconds or not seconds:
            return False
        rate = size * 8e-6 / seconds
        if self.average == "harmonic":
            self._rates.append(rate)
            self._mbit = len(self._rates) / sum(1 / each for each in self._rates)
        else:
            self._mbit = rate if self._mbit is None else self._mbit + self.weight * (rate - self._mbit)
        return True
