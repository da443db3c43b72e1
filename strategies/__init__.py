"""Flower strategies for federated split learning, one file per algorithm family."""

from fsl.strategies.asynchronous import AsyncSL
from fsl.strategies.cyclesl import CycleSL
from fsl.strategies.decoupled import DecoupledSL
from fsl.strategies.fedavg import FedAvg
from fsl.strategies.fedfly import FedFly
from fsl.strategies.psl import PSL, SGLR
from fsl.strategies.split_strategy import SplitStrategy
from fsl.strategies.splitfed import SplitFedV1, SplitFedV2, SplitFedV3
from fsl.strategies.vanilla import VanillaSL
from fsl.strategies.vertical import Vertical

__all__ = [
    "PSL",
    "SGLR",
    "AsyncSL",
    "CycleSL",
    "DecoupledSL",
    "FedAvg",
    "FedFly",
    "SplitFedV1",
    "SplitFedV2",
    "SplitFedV3",
    "SplitStrategy",
    "VanillaSL",
    "Vertical",
]
