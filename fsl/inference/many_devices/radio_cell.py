"""The radio that devices share: channels, in which whoever sends disturbs all others."""

import math
from dataclasses import dataclass

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import ConfigError


@checks_types()
@dataclass(frozen=True, kw_only=True)
class RadioCell:
    """Channels to one edge, and the path to it; defaults are the paper's (Hao et al. 2022, released code).

    A signal of so many watts comes over d metres as watts x d^-`exponent`. Its rate is `width_hz` log2(1 + signal /
    (`noise_watts` + the signals of all others in the channel)). A device sends with
    `least_watts` to `most_watts`.
    `down_mbit`: at which each answer comes back, whoever else is there; infinite, it takes no time.
    """

    channels: int = 2
    width_hz: float = 1e6
    noise_watts: float = 1e-9
    exponent: float = 3.0
    least_watts: float = 1e-5
    most_watts: float = 1.0
    down_mbit: float = math.inf

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ConfigError(f"channels={self.channels}: give at least 1")
        for name in ("width_hz", "noise_watts", "least_watts", "most_watts"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be above 0 and finite")
        if self.least_watts > self.most_watts:
            raise ConfigError(f"least_watts={self.least_watts}: it is more than most_watts={self.most_watts}")
        if not 0 <= self.exponent < math.inf:
            raise ConfigError(f"exponent={self.exponent}: it must be a finite number of at least 0")
        if not self.down_mbit > 0:
            raise ConfigError(f"down_mbit={self.down_mbit}: it must be above 0; math.inf takes no time")

    def gains(self, metres: np.ndarray) -> np.ndarray:
        """Returns the share of a signal that comes over so many metres, of any shape."""
        return np.asarray(metres, dtype=np.float64) ** -self.exponent

    def rates(self, signals: np.ndarray, disturbing: np.ndarray) -> np.ndarray:
        """Returns bits per second of signals in watts, beside `disturbing` watts of others; arrays of one shape."""
        return np.log1p(signals / (self.noise_watts + disturbing)) * (self.width_hz / math.log(2))

    def watts(self, shares: np.ndarray) -> np.ndarray:
        """Returns the power for shares from 0 (the least) to 1 (the most): equal steps are equal ratios."""
        ratio = math.log(self.least_watts / self.most_watts)
        return self.most_watts * np.exp(ratio * (1 - np.asarray(shares, dtype=np.float64)))

    def check_watts(self, watts: np.ndarray) -> None:
        """Raise ConfigError for a power with which no device may send."""
        if not (np.isfinite(watts).all() and (watts > 0).all() and (watts <= self.most_watts).all()):
            wrong = next(w for w in np.ravel(watts).tolist() if not 0 < w <= self.most_watts)
            raise ConfigError(f"watts={wrong}: a device sends with more than 0 and at most {self.most_watts:g} W")
