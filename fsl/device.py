"""`Device` and `LocalLossDevice`, by the name that device rules of one's own import them by."""

from fsl.round.front_device import Device, LocalLossDevice

__all__ = ["Device", "LocalLossDevice"]
