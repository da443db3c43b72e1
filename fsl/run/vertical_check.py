"""What a run of vertical split learning takes from its data, and what is refused of it before its first round."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fsl.data import IID, Partition, Partitioner, TaskData, VerticalTask, as_partitioner
from fsl.data.partition import AllRows
from fsl.errors import ConfigError
from fsl.models.vertical_model import VerticalModel
from fsl.round.workload import Workload
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.settings.taking_part import is_plain
from fsl.settings.training_settings import Training


class Everybody(Partitioner):
    """Gives every party all rows: of each person it has its own features."""

    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Returns all rows for each party."""
        return AllRows(devices, len(targets))


def is_vertical(strategy: CloudStrategy) -> bool:
    """Whether a strategy trains a front for each of several parties."""
    return bool(getattr(strategy, "vertical", False))


def of_parties(
    task: TaskData, strategy: CloudStrategy, given: Training | None, options: Mapping[str, Any]
) -> tuple[TaskData, Training]:
    """Returns the data in the seed's order, and the training settings, with a device for each party if none are given.

    Both as they are where there are no parties.
    """
    training = Training.of(given, options)
    if not isinstance(task, VerticalTask):
        return task, training
    task = task.shuffled(training.seed)
    if not is_vertical(strategy):
        return task, training
    if given is None and "devices" not in options:
        training = replace(training, devices=len(task.parties))
    if training.devices != len(task.parties):
        raise ConfigError(
            f"devices={training.devices}: the data are of {len(task.parties)} parties ({', '.join(task.parties)}), and "
            f"each is a device; give devices={len(task.parties)}"
        )
    return task, training


def partitioner_of(task: TaskData, strategy: CloudStrategy, partition: Any, data: Any) -> Partitioner:
    """Returns who holds which rows; ConfigError where rows of parties would be divided."""
    if not (isinstance(task, VerticalTask) and is_vertical(strategy)):
        return as_partitioner(partition, data)
    if partition is not None and not isinstance(partition, IID):
        raise ConfigError(
            "partition: vertical split learning divides features, not rows; each party has its features of every "
            "person: leave partition out"
        )
    return Everybody()


def refuse_vertical(federation: Federation, strategy: CloudStrategy, workload: Workload) -> None:
    """ConfigError where model, data, strategy and options of vertical split learning do not go together."""
    vertical, name, data, model = is_vertical(strategy), type(strategy).__name__, workload.data, workload.model
    parties = model.parties if isinstance(model, VerticalModel) else ()
    if parties and not vertical and strategy.trainer(1) is not None:
        raise ConfigError(
            f"strategy={name}: it trains one front and one back, and a VerticalModel has a front for each party; use "
            "strategy=vertical, or fedavg with devices=1 for the whole model on joined rows"
        )
    if parties and federation.privacy is not None:
        raise ConfigError("privacy: no account of it is built for a VerticalModel's parties; leave it out")
    held = data.held if isinstance(data, VerticalTask) else None
    if held is not None and federation.placement is None:
        raise ConfigError(
            f"the data are what {held} alone holds; a simulation plays all parties: give data of all of them "
            "(data=vertical)"
        )
    if held is not None and not vertical:
        raise ConfigError(
            f"strategy={name}: the data are what {held} alone holds, without other parties' columns; use "
            "strategy=vertical"
        )
    if not vertical:
        return
    if not isinstance(model, VerticalModel):
        raise ConfigError(
            f"strategy=vertical: the model is a {type(model).__name__}; give an fsl.models.VerticalModel, "
            "with a front for each party"
        )
    if not isinstance(data, VerticalTask):
        raise ConfigError("strategy=vertical: the data are of no parties; give an fsl.data.VerticalData")
    if data.parties != parties:
        raise ConfigError(
            f"the model's parties are {', '.join(parties)}, and the data's {', '.join(data.parties)}; name the same "
            "ones in the same order"
        )
    if model.tail is not None and data.label_party is None:
        raise ConfigError(
            "the model has a tail, which runs where the labels are, and those are at the edge; give labels to a party "
            "(labels='bank'), or a model without a tail"
        )
    _refuse_options(federation, workload)


def _refuse_options(federation: Federation, workload: Workload) -> None:
    training = federation.training
    refused = {
        "edges": (training.edges > 1, "one edge fuses what all parties send; use edges=1"),
        "devices_per_round": (
            training.devices_per_round is not None,
            "use strategy.absent for parties that are absent",
        ),
        "samples_per_device": (training.samples_per_device is not None, "all parties train on the same people"),
        "evaluate_devices": (
            federation.evaluation.devices < training.devices,
            f"one model is scored, of all parties; use {training.devices} or more",
        ),
        "evaluate_leakage": (federation.evaluation.leakage > 0, "it is not built for parties; use 0"),
        "augmentation": (workload.augmentation is not None, "it is of images, and parties have features; leave it out"),
        "evaluate_own": (bool(federation.evaluation.own), "all parties hold the same people; give test data"),
        "selection": (not is_plain(federation.selection), "every party is asked; use strategy.absent"),
        "availability": (federation.availability is not None, "use strategy.absent"),
        "deadline": (training.deadline is not None, "rounds of parties are not priced; leave it out"),
        "places": (workload.places is not None, "fronts run at parties, and the back at the edge; leave it out"),
    }
    for option, (given, what) in refused.items():
        if given:
            raise ConfigError(f"{option}: strategy=vertical does not take it: {what}")
