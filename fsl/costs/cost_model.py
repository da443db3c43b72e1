"""Prices a run's rounds from its segments, machines and links."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fsl.argument_types import checks_types
from fsl.costs.arrivals import Again
from fsl.costs.forecast import Forecast
from fsl.costs.profiles import Assignment, DeviceChoice, DeviceProfile, LinkChoice, LinkProfile, assignment
from fsl.costs.round_cost import DeviceLoad, RoundCost, arrival_orders, round_cost
from fsl.costs.serving import Serving
from fsl.costs.stages import SegmentCost


@checks_types()
@dataclass(frozen=True)
class Machines:
    """The profiles of a run's devices, edges and links."""

    devices: Assignment[DeviceProfile]
    edges: Assignment[DeviceProfile]
    links: Assignment[LinkProfile]
    backhaul: Assignment[LinkProfile] | None = None  # between edges, the same for every pair


@checks_types()
@dataclass(frozen=True)
class CostModel:
    """Prices rounds; draws mixed profiles from `seed`, the run's."""

    seed: int
    machines: Machines
    segments: tuple[SegmentCost, ...]
    by_cut: tuple[tuple[SegmentCost, ...], ...] = ()  # where devices are cut at different places: of each cut
    forecast: Forecast | None = None  # None: rounds are priced from what was measured alone

    @property
    def steady(self) -> bool:
        """Whether equal rounds cost the same at any time of the run: no link has a trace."""
        return not any(link.trace for link in self.machines.links.profiles)

    def predicted(self, edges: Mapping[int, int], serving: Serving, fronts: str) -> list[DeviceLoad]:
        """Returns the load of each device of `edges`, which says at which edge it trains, as known before a round."""
        assert self.forecast is not None
        return self.forecast.loads(edges, serving, fronts)

    @checks_types()
    def round(
        self,
        loads: Sequence[DeviceLoad],
        serving: Serving,
        start: float = 0.0,
        late: Collection[int] = (),
        deadline: float = math.inf,
    ) -> RoundCost:
        """Returns the cost of a round from second `start` of the run on; of `late` devices until the deadline."""
        machines, seed = self.machines, self.seed
        return round_cost(
            loads,
            serving,
            self.segments,
            {load.device: machines.devices.of(load.device, seed) for load in loads},
            {load.device: machines.links.of(load.device, seed) for load in loads},
            {edge: machines.edges.of(edge, seed) for edge in _edges(loads)},
            start,
            None if machines.backhaul is None else machines.backhaul.of(0, seed),
            self.by_cut,
            late,
            deadline,
        )

    def arrivals(
        self, homes: Mapping[int, int], serving: Serving, again: Again, start: float = 0.0
    ) -> dict[int, tuple[int, ...]]:
        """Returns, by edge, the order of arrival of a round of these devices, each at its edge (`homes`)."""
        machines, seed = self.machines, self.seed
        return arrival_orders(
            self.predicted(homes, serving, "merged"),
            again,
            serving,
            self.segments,
            {device: machines.devices.of(device, seed) for device in homes},
            {device: machines.links.of(device, seed) for device in homes},
            {edge: machines.edges.of(edge, seed) for edge in set(homes.values())},
            start,
        )

    def uplink(self, device: int, at: float) -> float:
        """Returns the bytes a second that a device's link carries up at this second of the run."""
        return self.machines.links.of(device, self.seed).uplink(at)

    def settings(self) -> dict[str, str]:
        """Returns the profiles as text: a run resumes only with equal ones, since its simulated time goes on."""
        machines = self.machines
        return {
            "costs.device": machines.devices.describe(),
            "costs.edge": machines.edges.describe(),
            "costs.link": machines.links.describe(),
        } | ({} if machines.backhaul is None else {"costs.backhaul": machines.backhaul.describe()})


def _edges(loads: Sequence[DeviceLoad]) -> set[int]:
    return {load.edge for load in loads} | {stay.edge for load in loads for stay in load.stays}


def machines(
    device: DeviceChoice, edge: DeviceChoice, link: LinkChoice, backhaul: LinkChoice | None = None
) -> Machines:
    """Assign profiles from a user's choices (see `fsl.simulate`); ConfigError for unknown ones."""
    return Machines(
        assignment("device", device, "device"),
        assignment("edge", edge, "device"),
        assignment("link", link, "link"),
        None if backhaul is None else assignment("backhaul", backhaul, "link"),
    )
