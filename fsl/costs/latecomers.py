"""Says who would be late in a round, before the round."""

from collections.abc import Callable, Sequence

from fsl.argument_types import checks_types
from fsl.costs.round_cost import DeviceLoad, RoundCost
from fsl.costs.serving import Serving


@checks_types()
def late_devices(
    loads: Sequence[DeviceLoad], serving: Serving, price: Callable[[Sequence[DeviceLoad]], RoundCost], deadline: float
) -> frozenset[int]:
    """Returns the devices that are not done `deadline` seconds after a round's start.

    With a back of its own each device goes at its own pace: late is who is not done in the round of all. Where devices
    share a back they wait for each other, and all would be late for one: the slowest of each edge's cohort, by its time
    alone, is left out until the others are done in time.
    """
    if not serving.shared:
        return frozenset(cost.device for cost in price(loads).devices if cost.done_s > deadline)
    late: set[int] = set()
    for edge in sorted({load.edge for load in loads}):
        cohort = [load for load in loads if load.edge == edge]
        alone = {load.device: price([load]).seconds for load in cohort}
        cohort.sort(key=lambda load: (alone[load.device], load.device))
        in_time, over = 0, len(cohort) + 1  # fewer devices are never slower
        while over - in_time > 1:
            middle = (in_time + over) // 2
            fits = price(cohort[:middle]).seconds <= deadline
            in_time, over = (middle, over) if fits else (in_time, middle)
        late |= {load.device for load in cohort[in_time:]}
    return frozenset(late)
