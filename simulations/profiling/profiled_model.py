"""Finds the model that is profiled, with inputs and data: of a configuration, or of a finished run."""

from dataclasses import dataclass
from pathlib import Path

import torch
from fsl.simulations.attacks.attacked_runs import config_of
from fsl.simulations.fsl_export import read_trained
from fsl.simulations.profiling.int8_model import in_int8
from torch import nn

from fsl.data import TaskData
from fsl.errors import ConfigError
from fsl.export.trained_model import TrainedModel
from fsl.inference import SplitPoints
from fsl.models.vertical_model import VerticalModel
from fsl.run.config import RunConfig, build_data, build_model, build_objective, read_config
from fsl.run.run_folder import RunFolder
from fsl.segments.tensor_trees import Values
from fsl.split.coded_model import CodedModel


@dataclass(frozen=True)
class ProfiledModel:
    """A model, a batch of its data, and the task that the data are of."""

    model: nn.Module
    task: TaskData

    def points(self, names: tuple[str, ...] | None) -> SplitPoints:
        """Returns the points of the model: all, or these and the extremes."""
        return SplitPoints(self.model, self.task.train.of_one_length().blank(3), names)

    def inputs(self, batch: int) -> Values:
        """Returns so many rows of the training data."""
        examples = self.task.train.of_one_length()
        inputs, _ = examples.batch(torch.arange(batch) % len(examples))
        return inputs


def of_configuration(top: RunConfig) -> ProfiledModel:
    """Returns the model that a run of this configuration begins with: weights do not change what it costs."""
    task, _ = build_data(top.data, top.training.seed)
    model, _ = build_model(top.model, task, top.training.seed, build_objective(top.objective))
    if isinstance(model, VerticalModel):
        raise ConfigError("a VerticalModel has fronts at several parties, and profiles of such are not built")
    return ProfiledModel(model, task)


def of_run(folder: Path, front: int | None, int8: bool | int = False) -> ProfiledModel:
    """Returns the model of a finished run; ConfigError where there is none, or it has a trained codec."""
    trained = read_trained(folder)
    if isinstance(trained.module, CodedModel):
        raise ConfigError(f"run={folder}: its model has a trained codec at its cut, and profiles of such are not built")
    top = read_config(config_of(RunFolder(folder)))
    task, _ = build_data(top.data, top.training.seed)
    return ProfiledModel(in_int8(whole_of(trained, front, f"run={folder}"), trained, task, int8), task)


def whole_of(trained: TrainedModel, front: int | None, given: str) -> nn.Module:
    """Returns the model of a run that an option gave, with a device's own front; ConfigError in the option's words."""
    try:
        return trained.whole(front)
    except ConfigError as error:
        told = str(error).replace("device=", "front=").replace("leave device out", "leave front out")
        raise ConfigError(f"{given}: {told}") from None
