"""Simulates seconds and joules of rounds, from profiles of devices, edges and links and the costs of stages."""

from fsl.costs.cost_model import CostModel, Machines, machines
from fsl.costs.cut_choice import CutChoice, CutRound, CutsByProfile, FastestRound, GivenCuts
from fsl.costs.hardware import Hardware
from fsl.costs.pricing import CutPrice, price
from fsl.costs.profiles import DeviceChoice, DeviceProfile, LinkChoice, LinkProfile, Mixed, load_profile
from fsl.costs.round_cost import DeviceLoad, RoundCost, round_cost
from fsl.costs.serving import Serving, serving_of
from fsl.costs.stages import SegmentCost, StageCost, segment_costs, stage_costs

__all__ = [
    "CostModel",
    "CutChoice",
    "CutPrice",
    "CutRound",
    "CutsByProfile",
    "DeviceChoice",
    "DeviceLoad",
    "DeviceProfile",
    "FastestRound",
    "GivenCuts",
    "Hardware",
    "LinkChoice",
    "LinkProfile",
    "Machines",
    "Mixed",
    "RoundCost",
    "SegmentCost",
    "Serving",
    "StageCost",
    "load_profile",
    "machines",
    "price",
    "round_cost",
    "segment_costs",
    "serving_of",
    "stage_costs",
]
