"""Thresholds of a model's exits."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.quoting import short


@checks_types()
@dataclass(frozen=True)
class Thresholds:
    """When rows leave, by exit in the order of a forward pass.

    `beta`: the confidence from which a row leaves; above 1 (of a confidence of your own: infinity) nobody does, and the
    head is not computed; from -infinity all do, however sure. `eta`: the predictor's probability below which a row
    bypasses the exit; 0, or none: nobody does, and the predictor is not computed.
    """

    beta: tuple[float, ...]
    eta: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", tuple(map(float, self.beta)))
        object.__setattr__(self, "eta", tuple(map(float, self.eta)) or (0.0,) * len(self.beta))
        if any(map(math.isnan, self.beta)):
            raise ConfigError(f"beta={self.beta}: give a confidence from 0 to 1 for each exit, above 1 for never")
        if len(self.eta) != len(self.beta) or not all(0 <= eta <= 1 for eta in self.eta):
            raise ConfigError(f"eta={self.eta}: give a probability from 0 to 1 for each of {len(self.beta)} exits")

    @staticmethod
    def of(given: "Given", exits: Sequence[str]) -> "Thresholds":
        """Returns thresholds from one confidence for all exits, one for each, or by exit; ConfigError for others."""
        if isinstance(given, Mapping):
            if set(given) != set(exits):
                raise ConfigError(f"thresholds: {', '.join(map(str, given))}; give one for each of {', '.join(exits)}")
            given = [given[name] for name in exits]
        if isinstance(given, Thresholds):
            found = given
        elif hasattr(given, "__float__") and not getattr(given, "ndim", 0):
            number: Any = given  # also NumPy's and torch's
            found = Thresholds((float(number),) * len(exits))
        elif isinstance(given, Iterable) and not isinstance(given, str | bytes):
            found = Thresholds(tuple(given))
        else:
            raise ConfigError(
                f"thresholds={short(given)}: give one confidence for all exits, one for each of {', '.join(exits)}, or "
                "Thresholds"
            )
        if len(found.beta) != len(exits):
            raise ConfigError(f"thresholds: {len(found.beta)} are given, and the exits are {', '.join(exits)}")
        return found


Given = Thresholds | float | Sequence[float] | Mapping[str, float]
