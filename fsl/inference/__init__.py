"""A split model at work: where a trained model can be divided between a device and an edge."""

from fsl.inference.split_points import Crossing, SplitPoints

__all__ = ["Crossing", "SplitPoints"]
