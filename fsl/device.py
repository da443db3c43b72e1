"""Public names of the device half: subclass `Device` or `LocalLossDevice` for a device rule of your own."""

from fsl.round.front_device import Device, LocalLossDevice

__all__ = ["Device", "LocalLossDevice"]
