"""Looks at the link now and then while a policy has the device compute by itself, since nobody measures it then."""

import math

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.planning.split_costs import REMOTE, LinkState, SplitChoice
from fsl.inference.planning.split_policy import SplitPolicy


class Scouting(SplitPolicy):
    """Chooses as another policy does, but sends one request as `scout` where none has gone that way for so long.

    A device learns its link's rate from what crosses. Where everything is local, nothing does, and where little
    crosses, it tells nothing: the estimate stays what it was when the link was slow. `scout` (default: all remote)
    sends enough to tell. None is sent while no edge is open. `chosen` is what the other policy chose last.
    """

    @checks_types(leave=("policy",))
    def __init__(self, policy: SplitPolicy, *, every_seconds: float = 2.0, scout: SplitChoice = REMOTE):
        if not 0 < every_seconds < math.inf:
            raise ConfigError(f"every_seconds={every_seconds}: it must be above 0 and finite")
        self.policy, self.every_seconds, self.scout = policy, every_seconds, scout
        self.name = f"{policy.name}, scouting"
        self.chosen: SplitChoice | None = None
        self.scouts = 0
        self._last = -math.inf

    def choose(self, state: LinkState, now: float) -> SplitChoice:
        """Returns the other policy's choice, or the scout."""
        self.chosen = self.policy.choose(state, now)
        if self.chosen == self.scout:
            self._last = now
        elif state.up_mbit > 0 and now - self._last >= self.every_seconds:
            self._last = now
            self.scouts += 1
            return self.scout
        return self.chosen
