"""Dynamic split computing: the point is chosen anew as the link and the edge change (Bakhtiarnia et al. 2022)."""

import math
from collections.abc import Sequence

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.planning.request_prediction import best_of, predicted
from fsl.inference.planning.split_costs import LinkState, SplitChoice, SplitCosts
from fsl.inference.planning.split_policy import SplitPolicy


class DynamicSplit(SplitPolicy):
    """Switches to the choice that is predicted to be answered soonest, if that pays and the last switch is long ago.

    It switches where the predicted time falls by more than the share `gain`, and `dwell_seconds` at least after the
    switch before: in T seconds there are at most T / dwell_seconds switches, however the rates jump (`gain` alone
    does not bound them). `choices`: what it may choose among (default: all points, by each codec that the costs know,
    since formats of the input change the answers). Also where the link is gone it waits for the dwell time: a deadline
    and the way back to local are the caller's.
    """

    @checks_types()
    def __init__(
        self,
        costs: SplitCosts,
        *,
        gain: float = 0.1,
        dwell_seconds: float = 1.0,
        choices: Sequence[SplitChoice] | None = None,
    ):
        if not 0 <= gain < 1 or not 0 <= dwell_seconds < math.inf:
            raise ConfigError(f"gain={gain}, dwell_seconds={dwell_seconds}: gain must be in [0, 1), seconds at least 0")
        if choices is not None and not choices:
            raise ConfigError("choices=[]: give at least one")
        self.costs, self.gain, self.dwell_seconds = costs, gain, dwell_seconds
        self.choices = tuple(costs.choices() if choices is None else choices)
        for choice in self.choices:
            costs.parts(choice)  # refuses what it does not know
        self.name = "dynamic"
        self.switches = 0
        self._current: SplitChoice | None = None
        self._seen: LinkState | None = None
        self._switched = -math.inf

    def choose(self, state: LinkState, now: float) -> SplitChoice:
        """Returns the current choice, or the one that it switches to; a state that it has seen is not thought over."""
        if self._current is None:
            self._current, self._switched = best_of(self.costs, self.choices, state).choice, now
        elif state != self._seen and now - self._switched >= self.dwell_seconds:
            self._seen = state
            best = best_of(self.costs, self.choices, state)
            before = predicted(self.costs, self._current, state).seconds
            if best.seconds < before * (1 - self.gain):
                self._current, self._switched = best.choice, now
                self.switches += 1
        return self._current
