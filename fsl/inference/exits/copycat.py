"""Fine-tunes exits on what the final exit says of data without labels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.data import Examples
from fsl.errors import ConfigError
from fsl.inference.exits.exit_courses import TrainedPhase
from fsl.inference.exits.exit_losses import labels_of
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_training import examples_of, train_exits
from fsl.inference.exits.frozen_features import FrozenFeatures
from fsl.objective import as_objective


@checks_types(leave=("data", "objective", "optimizer"))
def copycat(
    model: ExitModel,
    data: Any,
    *,
    objective: Any = None,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    decay_at: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    seed: int = 0,
) -> TrainedPhase:
    """Fine-tune the heads on the labels that the final exit gives to more data, whose own labels it does not look at.

    `data`: inputs alone, or as `train_exits` takes it. The backbone is frozen, and the heads go on from where they are.
    Bakhtiarnia et al. 2021 (arXiv 2105.09121). ConfigError for data that draw rows at random, since each row is
    labelled once.
    """
    examples = examples_of(data)
    if examples.draws:
        raise ConfigError("data: the final exit labels each row once, and these rows are drawn anew each time")
    chosen = as_objective(objective)
    features = FrozenFeatures(model, examples, batch_size, once=True)
    parts = [labels_of(features.of(rows).final, chosen).cpu() for rows in torch.arange(len(examples)).split(batch_size)]
    (phase,) = train_exits(
        model,
        Relabelled(examples, torch.cat(parts)),
        how="frozen",
        objective=chosen,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        decay_at=decay_at,
        optimizer=optimizer,
        seed=seed,
    )
    return replace(phase, name="copycat")


class Relabelled(Examples):
    """Examples with other targets (N, ...)."""

    draws = False

    def __init__(self, examples: Examples, targets: Tensor) -> None:
        self._examples, self.targets, self.trimmed = examples, targets, examples.trimmed

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self._examples.input_shape

    def batch(self, indices: Tensor) -> tuple[Any, Tensor]:
        """Returns the rows' inputs, and the other targets."""
        return self._examples.batch(indices)[0], self.targets.index_select(0, indices)

    def subset(self, indices: Tensor) -> "Relabelled":
        """Returns these rows as a set of their own."""
        return Relabelled(self._examples.subset(indices), self.targets.index_select(0, indices))
