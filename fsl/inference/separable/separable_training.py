"""Trains separable networks with fixed gates, and measures them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.data import Examples, TaskData, as_examples
from fsl.errors import ConfigError
from fsl.inference.separable.separable_model import SeparableModel
from fsl.objective import CrossEntropy, Objective, as_objective
from fsl.segments.descent import as_found, check_descent, descend, optimizer_of
from fsl.segments.modes import evaluating, start_training

_MEASURED = 256  # rows at a time


@checks_types(leave=("data", "objective", "optimizer"))
def train_separable(
    model: SeparableModel,
    data: Any,
    *,
    objective: Any = None,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    decay_at: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    seed: int = 0,
) -> tuple[float, ...]:
    """Train a separable network with the gates that it has, from the weights that it has; returns each epoch's loss.

    `data`: TaskData (its training rows), Examples, or (images, targets). `objective`: as `fsl.simulate` takes it.
    `optimizer` makes one of parameters and `lr`; the rate is a tenth from epoch `decay_at` on.
    """
    rows = SeparableRows.of(model, data, objective)
    check_descent(epochs, batch_size, learning_rate)
    links = model.gates.tensor()
    trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("nothing is left to train: all parameters are frozen")

    def loss(places: Tensor) -> Tensor:
        images, targets = rows.at(places)
        return rows.objective.loss(model.through(images, links), targets)

    with as_found(model):
        start_training(model)
        made = optimizer_of(optimizer, trained, learning_rate)
        found = descend(
            made, loss, rows.place, len(rows.examples), epochs, batch_size, seed, "train-separable", decay_at
        )
    return tuple(found)


@checks_types(leave=("data",))
def separable_accuracy(model: SeparableModel, data: Any) -> float:
    """Returns the share of rows whose class the network gives, with the gates that it has.

    `data`: Examples, or (images, targets). ConfigError for a task, which does not say which of its rows.
    """
    if isinstance(data, TaskData):
        raise ConfigError("data: a task has training and test rows; give those to measure on, as task.test")
    rows = SeparableRows.of(model, data, None)
    if not isinstance(rows.objective, CrossEntropy):
        raise ConfigError("data: accuracy is of classes; give labels")
    right = 0
    with evaluating(model), torch.no_grad():
        for places in torch.arange(len(rows.examples)).split(_MEASURED):
            images, targets = rows.at(places)
            right += int((model(images).argmax(1) == targets).sum())
    return right / len(rows.examples)


@dataclass(frozen=True)
class SeparableRows:
    """Rows that a network learns from, with an objective that knows their targets."""

    examples: Examples
    objective: Objective
    place: torch.device

    @staticmethod
    def of(model: SeparableModel, data: Any, objective: Any) -> "SeparableRows":
        """Read rows; ConfigError where they do not fit the network."""
        examples = as_examples(data.train if isinstance(data, TaskData) else data)
        if not len(examples):
            raise ConfigError("data: it has no rows; give at least two")
        if examples.input_shape != model.plan.input_shape:
            raise ConfigError(
                f"data: images of shape {examples.input_shape}, and the network was made for {model.plan.input_shape}"
            )
        place = next(model.parameters()).device
        images, targets = examples.batch(torch.arange(min(2, len(examples))))
        with evaluating(model), torch.no_grad():
            outputs = model(images.to(place)).cpu()
        found = as_objective(objective).fit(examples.targets, outputs)
        found.check(outputs, targets)
        found.check_targets(outputs, examples.targets, "training")
        return SeparableRows(examples, found, place)

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images and targets where the network is, channels last: CPUs convolve twice as fast so."""
        images, targets = self.examples.batch(places)
        images = images.to(self.place).contiguous(memory_format=torch.channels_last)
        return images, targets.to(self.place)
