"""The learning rate of a round."""

import math
from dataclasses import dataclass

from fsl.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """The learning rate by round: times `gamma` after each milestone, a share of the run's rounds; or a cosine."""

    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    cosine: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if any(not 0 < m < 1 for m in self.milestones):
            raise ConfigError(f"optimizer.milestones={list(self.milestones)}: each is a share of the rounds, in (0, 1)")
        if not 0 < self.gamma <= 1:
            raise ConfigError(f"optimizer.gamma={self.gamma}: it multiplies the learning rate and must lie in (0, 1]")

    def factor(self, round: int, rounds: int) -> float:
        """Returns the factor on the base learning rate in `round` (from 1) of `rounds`."""
        done = (round - 1) / rounds
        steps = self.gamma ** sum(done >= m for m in self.milestones)
        return steps * (0.5 * (1 + math.cos(math.pi * done)) if self.cosine else 1.0)
