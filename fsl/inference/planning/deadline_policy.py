"""Operating points by link and deadline: the best answers of those that are expected to come in time."""

import math
from collections.abc import Mapping

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.planning.request_prediction import predicted
from fsl.inference.planning.split_costs import LinkState, SplitChoice, SplitCosts
from fsl.inference.planning.split_policy import SplitPolicy


class BestInTime(SplitPolicy):
    """Chooses for each request the answers of highest quality that are predicted within a deadline from its arrival.

    `qualities`: what answers are worth by choice, higher being better, as accuracies that `fsl-compare-inference`
    measures; only these choices are made. Of equal qualities the quickest; where nothing is in time, the quickest of
    all. It switches as often as link, queue and load say: bottlenecks of several rates share all weights but their own
    (Datta et al. 2022, arXiv 2208.11596), so that a switch costs nothing.
    """

    @checks_types()
    def __init__(self, costs: SplitCosts, qualities: Mapping[SplitChoice, float], deadline_seconds: float):
        if not 0 < deadline_seconds < math.inf:
            raise ConfigError(f"deadline_seconds={deadline_seconds}: it must be a finite number above 0")
        if not qualities:
            raise ConfigError("qualities={}: give at least one choice with what its answers are worth")
        for choice, quality in qualities.items():
            costs.parts(choice)  # refuses what it does not know
            if not math.isfinite(quality):
                raise ConfigError(f"qualities: {choice.title} has {quality}; it must be a finite number")
        self.costs, self.qualities, self.deadline_seconds = costs, dict(qualities), deadline_seconds
        self.name = "best in time"

    def choose(self, state: LinkState, now: float) -> SplitChoice:
        """Returns the best choice in time, or else the quickest."""
        seconds = {choice: predicted(self.costs, choice, state).seconds for choice in self.qualities}
        in_time = [choice for choice, each in seconds.items() if each + state.waited_seconds <= self.deadline_seconds]
        if not in_time:
            return min(seconds, key=lambda choice: seconds[choice])
        return min(in_time, key=lambda choice: (-self.qualities[choice], seconds[choice]))
