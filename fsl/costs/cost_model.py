"""What a run's rounds cost: its segments, and who has which machine and link."""

from collections.abc import Sequence
from dataclasses import dataclass

from fsl.costs.profiles import Assignment, DeviceChoice, DeviceProfile, LinkChoice, LinkProfile, assignment
from fsl.costs.round_cost import DeviceLoad, RoundCost, Serving, round_cost
from fsl.costs.stages import SegmentCost


@dataclass(frozen=True)
class Machines:
    """The devices, edges and links of a run: which of each has which profile."""

    devices: Assignment[DeviceProfile]
    edges: Assignment[DeviceProfile]
    links: Assignment[LinkProfile]
    backhaul: Assignment[LinkProfile] | None = None  # between edges; every pair has the same


@dataclass(frozen=True)
class CostModel:
    """Prices rounds; `seed` is the run's, from which mixed profiles are drawn."""

    seed: int
    machines: Machines
    segments: tuple[SegmentCost, ...]

    def round(self, loads: Sequence[DeviceLoad], serving: Serving, start: float = 0.0) -> RoundCost:
        """The cost of a round that begins at second `start` of the run."""
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
        )

    def settings(self) -> dict[str, str]:
        """The profiles as text: a run is resumed only with equal ones, for its simulated time goes on."""
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
    """From what a user gives for each (see `fsl.simulate`) to who has which; ConfigError for what does not exist."""
    return Machines(
        assignment("device", device, "device"),
        assignment("edge", edge, "device"),
        assignment("link", link, "link"),
        None if backhaul is None else assignment("backhaul", backhaul, "link"),
    )
