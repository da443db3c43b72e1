"""Stands between devices and an edge on this machine, and is as slow as a link whose rate changes."""

from fsl.inference.links.link_schedule import LinkSchedule
from fsl.inference.links.shaped_link import ShapedLink

__all__ = ["LinkSchedule", "ShapedLink"]
