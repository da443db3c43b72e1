"""Many devices that share an edge and its radio: an environment, hybrid PPO (MAHPPO), and what it has to beat."""

from fsl.inference.many_devices.fleet_baselines import (
    GreedyFleet,
    GreedyInTurn,
    LocalFleet,
    OffloadingFleet,
    TakingTurns,
)
from fsl.inference.many_devices.fleet_controller import Allotment, DeviceSituation, FleetController
from fsl.inference.many_devices.fleet_environment import FleetEnvironment
from fsl.inference.many_devices.fleet_evaluation import FleetEpisodes, FleetResult, evaluated
from fsl.inference.many_devices.fleet_policy import FleetPolicy, load_fleet_policy
from fsl.inference.many_devices.fleet_rule import FleetRule
from fsl.inference.many_devices.fleet_search import FixedFleet, enumerated_optimum, searched_actions
from fsl.inference.many_devices.fleet_setting import FleetActions, FleetSetting, FleetView
from fsl.inference.many_devices.fleet_simulation import FleetSimulation
from fsl.inference.many_devices.fleet_training import PpoOptions, TrainingProgress, train_fleet_policy
from fsl.inference.many_devices.point_table import PointTable
from fsl.inference.many_devices.published_tables import jetson_nano_resnet18
from fsl.inference.many_devices.radio_cell import RadioCell

__all__ = [
    "Allotment",
    "DeviceSituation",
    "FixedFleet",
    "FleetActions",
    "FleetController",
    "FleetEnvironment",
    "FleetEpisodes",
    "FleetPolicy",
    "FleetResult",
    "FleetRule",
    "FleetSetting",
    "FleetSimulation",
    "FleetView",
    "GreedyFleet",
    "GreedyInTurn",
    "LocalFleet",
    "OffloadingFleet",
    "PointTable",
    "PpoOptions",
    "RadioCell",
    "TakingTurns",
    "TrainingProgress",
    "enumerated_optimum",
    "evaluated",
    "jetson_nano_resnet18",
    "load_fleet_policy",
    "searched_actions",
    "train_fleet_policy",
]
