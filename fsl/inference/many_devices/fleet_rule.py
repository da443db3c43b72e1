"""Rules say what a fleet's devices do in a slot."""

from abc import ABC, abstractmethod

from fsl.inference.many_devices.fleet_setting import FleetActions, FleetSetting, FleetView


class FleetRule(ABC):
    """Chooses points, channels and powers for all devices of a fleet, slot after slot."""

    name: str

    def check(self, setting: FleetSetting) -> None:  # noqa: B027
        """Raise ConfigError for a fleet that the rule is not for."""

    @abstractmethod
    def actions(self, setting: FleetSetting, view: FleetView) -> FleetActions:
        """Returns what each device is told, in each copy of the view."""
