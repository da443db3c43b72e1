"""Draws rates of links that change: a Gauss-Markov process around the level of a regime, which changes at times."""

import math
from dataclasses import dataclass

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.planning.rate_trace import RateTrace


@checks_types()
@dataclass(frozen=True)
class RateModel:
    """A link whose rate wanders: no measurement, and to be called synthetic wherever it is shown.

    The logarithm of the rate is a Gauss-Markov process of first order around that of the regime's level: `memory` of
    one second's deviation is kept in the next, and `spread` is the deviation's standard deviation in the long run. A
    regime lasts `regime_s` seconds in the mean, and the next is drawn from `levels`, factors on `level_mbit`.
    """

    level_mbit: float
    spread: float
    memory: float
    regime_s: float
    levels: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        fine = 0 < self.level_mbit < math.inf and 0 <= self.spread < math.inf and 0 <= self.memory < 1
        fine = fine and self.regime_s > 0
        if not fine or not self.levels or not all(0 < level < math.inf for level in self.levels):
            raise ConfigError(
                f"{self}: level_mbit, regime_s and levels must be above 0, spread at least 0, memory in [0, 1), all "
                "but regime_s finite"
            )

    @checks_types()
    def drawn(self, seconds: int, seed: int) -> RateTrace:
        """Returns a trace of a value each second; equal seeds give equal traces."""
        if seconds < 1:
            raise ConfigError(f"seconds={seconds}: draw at least one")
        draws = seeds.numpy_generator(seed, "link rates")
        noise, ends, levels = draws.normal(size=seconds), draws.random(seconds), draws.choice(self.levels, seconds)
        step = self.spread * math.sqrt(1 - self.memory**2)
        deviation, level = self.spread * float(noise[0]), float(levels[0])
        values = []
        for second in range(seconds):
            if second:
                deviation = self.memory * deviation + step * float(noise[second])
                if ends[second] < 1 / self.regime_s:
                    level = float(levels[second])
            rate = self.level_mbit * level * math.exp(deviation - self.spread**2 / 2)
            values.append(round(rate, 3) or rate)  # a slow link is no dead one
        return RateTrace(tuple(float(second) for second in range(seconds)), tuple(values))


# Level 1 is the rate up of fsl's link profiles, whose sources configs/link has; how rates wander is made up.
MODELS = {
    "wifi": RateModel(level_mbit=75.0, spread=0.25, memory=0.8, regime_s=40, levels=(1.0, 1.0, 0.3)),
    "lte": RateModel(level_mbit=6.3, spread=0.5, memory=0.9, regime_s=30, levels=(1.5, 1.0, 0.4)),
    "5g": RateModel(level_mbit=21.08, spread=0.6, memory=0.85, regime_s=20, levels=(2.0, 1.0, 0.1)),
}
SHIPPED_SECONDS, SHIPPED_SEED = 300, 0


def shipped_text(name: str) -> str:
    """Returns the file of a trace that comes with fsl."""
    model = MODELS[name]
    trace = model.drawn(SHIPPED_SECONDS, SHIPPED_SEED)
    lines = [f"{second:g},{value}" for second, value in zip(trace.seconds, trace.values)]
    head = [
        f"# synthetic, no measurement: fsl.inference.planning.{model}",
        f"# seed {SHIPPED_SEED}; level_mbit is the rate up of one of fsl's link profiles, the course is made up",
        "second,mbit",
    ]
    return "\n".join([*head, *lines]) + "\n"
