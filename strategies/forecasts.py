"""What the cost model foresees of a round: each device's work, when it is done, and who would be late."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fsl.costs import DeviceLoad, RoundCost, Serving, late_devices, serving_of
from fsl.errors import ConfigError, RunError
from fsl.importing.spec import Spec
from fsl.messages.round_plan import Fronts
from fsl.settings.federation_settings import Federation, RoundPricer


class Forecasts:
    """Foresees rounds of a run. `planned`: a round's edge trainer. `attached`: a device's edge when a round starts."""

    def __init__(
        self,
        federation: Federation,
        fronts: Fronts,
        planned: Callable[[int], Spec | None],
        attached: Callable[..., int],
    ) -> None:
        self._federation = federation
        self._fronts = fronts
        self._planned = planned
        self._attached = attached

    def seconds(self, round: int, start: float, devices: Sequence[int]) -> dict[int, float]:
        """Returns by device the seconds until it is done in a round of these, which begins at second `start`."""
        loads, serving = self._loads(round, devices, self.cuts(round, start, devices))
        cost: RoundCost = self._costs.round(loads, serving, start)
        return {device.device: device.done_s for device in cost.devices}

    def cuts(self, round: int, start: float, devices: Sequence[int]) -> Mapping[int, int]:
        """Returns the number of each device's cut in a round of these; none where all are cut alike."""
        planner = self._federation.cuts
        return {} if planner is None else planner.at(round, devices, partial(self._attached, round=round), start)

    def late(self, round: int, start: float, devices: Sequence[int], cuts: Mapping[int, int]) -> list[DeviceLoad]:
        """Returns the loads of those devices that would not be done by the run's deadline; none without one.

        `cuts`: as `cuts` returned for these devices.
        """
        deadline = self._federation.training.deadline
        if deadline is None or not devices:
            return []
        loads, serving = self._loads(round, devices, cuts)

        def price(some: Sequence[DeviceLoad]) -> RoundCost:
            return self._costs.round(some, serving, start)

        late = late_devices(loads, serving, price, deadline)
        return [load for load in loads if load.device in late]

    def refuse_short_deadline(self) -> None:
        """Raise ConfigError for a deadline by which no device would ever be done."""
        costs, planner = self._federation.costs, self._federation.cuts
        limits = {
            "deadline": self._federation.training.deadline,
            "selection.deadline": self._federation.selection.done_by,
        }
        key, limit = min(
            ((key, limit) for key, limit in limits.items() if limit is not None),
            key=lambda known: known[1],
            default=("", None),
        )
        unknown = costs is None or not costs.steady or (planner is not None and not planner.predicts)
        if limit is None or unknown:
            return
        fastest = math.inf
        for device in range(self._federation.training.devices):
            fastest = min(fastest, self.seconds(1, 0.0, [device])[device])
            if fastest <= limit:
                return
        raise ConfigError(
            f"{key}={limit:g}: the fastest device takes {fastest:.4g} simulated seconds for a round, so that nobody "
            "would ever be done; give more"
        )

    @property
    def _costs(self) -> RoundPricer:
        if self._federation.costs is None:
            raise RunError("nothing foresees what rounds take: this run has no cost model")
        return self._federation.costs

    def _loads(self, round: int, devices: Sequence[int], cuts: Mapping[int, int]) -> tuple[list[DeviceLoad], Serving]:
        spec = self._planned(round)
        serving = serving_of(None if spec is None else spec.build(), self._fronts)
        edges = {device: self._attached(device, round) for device in devices}
        if (planner := self._federation.cuts) is not None:
            return [planner.load(device, cuts[device], edge) for device, edge in edges.items()], serving
        return list(self._costs.predicted(edges, serving, self._fronts)), serving
