"""What simulated seconds and joules are computed from: the profiles of a run's devices, edges and links."""

from dataclasses import dataclass
from typing import ClassVar, TypedDict

from fsl.costs.cost_model import Machines, machines
from fsl.costs.profiles import DeviceChoice, LinkChoice, assignment
from fsl.settings.option_groups import OptionGroup


class HardwareOptions(TypedDict, total=False):
    """The fields of `Hardware` as keywords."""

    device_profile: DeviceChoice
    edge_profile: DeviceChoice
    link_profile: LinkChoice
    backhaul_profile: LinkChoice


@dataclass(frozen=True, kw_only=True)
class Hardware(OptionGroup):
    """The profiles of a run's machines and links; they change `sim_seconds` and `energy_joules`.

    They change a weight only where a codec follows the links (`fsl.codecs.Adaptive` with `seconds`).

    Each is a profile or its name for all, a list by id (ids beyond its end start over), or names with shares to draw
    from, as in `{"pi3": 0.5, "pi4": 0.5}`. ConfigError for a profile that does not exist.
    """

    keyword: ClassVar[str] = "{}_profile"

    device: DeviceChoice = "pi4"
    """Profile of the devices."""

    edge: DeviceChoice = "edge_gpu"
    """Profile of the edge servers."""

    link: LinkChoice = "wifi_75"
    """Profile of the links between devices and their edges."""

    backhaul: LinkChoice = "lan"
    """Profile of the links between edges, over which sessions of devices that move go, and from edges to the cloud."""

    def __post_init__(self) -> None:
        assignment("backhaul", self.backhaul, "link")  # None would mean to `machines` that nothing moves
        self.machines(moving=True)  # refuses a wrong name, also of a link that nothing will go over

    def machines(self, moving: bool) -> Machines:
        """Which device, edge and link has which profile; `moving`: sessions go between edges."""
        return machines(self.device, self.edge, self.link, self.backhaul if moving else None)
