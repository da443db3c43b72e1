"""Prices a run's rounds from its segments, machines and links."""

from collections.abc import Sequence
from dataclasses import dataclass

from fsl.costs.profiles import Assignment, DeviceChoice, DeviceProfile, LinkChoice, LinkProfile, assignment
from fsl.costs.round_cost import DeviceLoad, RoundCost, round_cost
from fsl.costs.serving import Serving
from fsl.costs.stages import SegmentCost


@dataclass(frozen=True)
class Machines:
    """The profiles of a run's devices, edges and links."""

    devices: Assignment[DeviceProfile]
    edges: Assignment[DeviceProfile]
    links: Assignment[LinkProfile]
    backhaul: Assignment[LinkProfile] | None = None  # between edges, the same for every pair


@dataclass(frozen=True)
class CostModel:
    """Prices rounds; draws mixed profiles from `seed`, the run's."""

    seed: int
    machines: Machines
    segments: tuple[SegmentCost, ...]
    by_cut: tuple[tuple[SegmentCost, ...], ...] = ()  # where devices are cut at different places: of each cut

    def round(self, loads: Sequence[DeviceLoad], serving: Serving, start: float = 0.0) -> RoundCost:
        """Returns the cost of a round that begins at second `start` of the run."""
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
        )

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
