"""FedCS: as many devices as can be done by a deadline (Nishio & Yonetani 2019)."""

import math
from collections.abc import Sequence

from fsl.errors import ConfigError
from fsl.selection.selection import Candidates, Selection


class FedCS(Selection):
    """Draws devices_per_round devices uniformly, and takes as many of them as are done by `deadline`, greedily.

    The fastest come first, and a device is added where the whole round, as the cost model predicts it, still ends by
    the deadline; None is the run's own. Waiting at an edge counts, since the prediction is of all that were taken so
    far and the new one. The paper's devices upload one after another over a channel that they share, so that these
    times add up; a link of fsl's is a device's own. Source: Nishio & Yonetani 2019, "Client Selection for
    Federated Learning with Heterogeneous Resources in Mobile Edge", ICC, Protocol 2 and Algorithm 3.
    """

    needs = ("seconds",)

    def __init__(self, deadline: float | None = None):
        if deadline is not None and not (
            isinstance(deadline, int | float)
            and not isinstance(deadline, bool)
            and math.isfinite(deadline)
            and deadline > 0
        ):
            raise ConfigError(f"selection.deadline={deadline!r}: simulated seconds of a round, above 0, or null")
        self.deadline = self.done_by = deadline

    def select(self, candidates: Candidates) -> Sequence[int]:
        """Returns those that are done in time; none where the fastest is not."""
        limit = self.deadline if self.deadline is not None else candidates.deadline
        assert limit is not None  # `check` has seen one
        asked = candidates.devices
        if candidates.count < len(asked):
            draw = candidates.generator("fedcs")
            places = draw.choice(len(asked), candidates.count, replace=False)
            asked = sorted(candidates.devices[int(place)] for place in places)
        alone = {device: candidates.seconds([device])[device] for device in asked}
        fast = sorted(
            (device for device in asked if alone[device] <= limit), key=lambda device: (alone[device], device)
        )

        def in_time(devices: Sequence[int]) -> bool:
            return max(candidates.seconds(devices).values(), default=0.0) <= limit

        taken, over = len(fast), len(fast) + 1  # the longest beginning of the list that is in time
        if not in_time(fast):
            taken, over = 0, len(fast)
            while over - taken > 1:
                middle = (taken + over) // 2
                taken, over = (middle, over) if in_time(fast[:middle]) else (taken, middle)
        chosen = fast[:taken]
        for device in fast[over:]:
            if in_time([*chosen, device]):
                chosen.append(device)
        return sorted(chosen)

    def check(self, devices: int, devices_per_round: int | None, deadline: float | None) -> None:
        """Refuse a run without any deadline."""
        if self.deadline is None and deadline is None:
            raise ConfigError(
                "selection=fedcs: it takes the devices that are done by a deadline, and there is none; give "
                "selection.deadline, or the run's own deadline, in simulated seconds"
            )
