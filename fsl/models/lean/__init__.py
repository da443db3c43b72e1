"""Fronts for small devices: Ghost modules, int8, pruned channels, pruned weights."""

from fsl.models.lean.calibration import calibrated
from fsl.models.lean.ghosting import ghosted
from fsl.models.lean.int8_front import int8_front
from fsl.models.lean.int8_machine import check_int8, has_vnni
from fsl.models.lean.lean_options import (
    LEAN_FRONTS,
    GhostFront,
    LeanFront,
    MagnitudeFront,
    PrunedFront,
    QuantizedFront,
)
from fsl.models.lean.magnitude import MaskedConv2d, MaskedLinear, magnitude_pruned, unmasked
from fsl.models.lean.pruning import ChannelGroup, PruningPlan, plan_pruning, pruned, zeroed
from fsl.models.lean.quantizing import quantized
from fsl.models.lean.rounding import Rounding

__all__ = [
    "LEAN_FRONTS",
    "ChannelGroup",
    "GhostFront",
    "LeanFront",
    "MagnitudeFront",
    "MaskedConv2d",
    "MaskedLinear",
    "PrunedFront",
    "PruningPlan",
    "QuantizedFront",
    "Rounding",
    "calibrated",
    "check_int8",
    "ghosted",
    "has_vnni",
    "int8_front",
    "magnitude_pruned",
    "plan_pruning",
    "pruned",
    "quantized",
    "unmasked",
    "zeroed",
]
