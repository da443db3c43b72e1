"""Early exits: classifiers at stages of a model, trained, and left by samples that are sure enough."""

from fsl.inference.exits.break_even import Bypass, bypass_at, pays
from fsl.inference.exits.copycat import copycat
from fsl.inference.exits.exit_choice import Exits
from fsl.inference.exits.exit_courses import TrainedPhase
from fsl.inference.exits.exit_folder import SavedExits, load_exits, save_exits
from fsl.inference.exits.exit_heads import ConvExit, ExitHead, FusionExit, LinearExit, MLPExit, SLViTExit
from fsl.inference.exits.exit_losses import Distillation
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_outputs import ExitOutputs, Replay, collect_outputs
from fsl.inference.exits.exit_predictor import ExitPredictor
from fsl.inference.exits.exit_seconds import ExitSeconds, exit_seconds
from fsl.inference.exits.exit_thresholds import Thresholds
from fsl.inference.exits.exit_training import train_exits
from fsl.inference.exits.exit_walk import ExitCosts, ExitResult, Onward, PartialResult
from fsl.inference.exits.exits_in_training import with_exits
from fsl.inference.exits.head_widths import width_for_macs
from fsl.inference.exits.predictor_training import train_predictors
from fsl.inference.exits.threshold_search import ChosenThresholds, ThresholdLine, ThresholdLines, choose_thresholds

__all__ = [
    "Bypass",
    "ChosenThresholds",
    "ConvExit",
    "Distillation",
    "ExitCosts",
    "ExitHead",
    "ExitModel",
    "ExitOutputs",
    "ExitPredictor",
    "ExitResult",
    "ExitSeconds",
    "Exits",
    "FusionExit",
    "LinearExit",
    "MLPExit",
    "Onward",
    "PartialResult",
    "Replay",
    "SLViTExit",
    "SavedExits",
    "ThresholdLine",
    "ThresholdLines",
    "Thresholds",
    "TrainedPhase",
    "bypass_at",
    "choose_thresholds",
    "collect_outputs",
    "copycat",
    "exit_seconds",
    "load_exits",
    "pays",
    "save_exits",
    "train_exits",
    "train_predictors",
    "width_for_macs",
    "with_exits",
]
