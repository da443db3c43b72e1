"""Labels data without labels by what the final exit says of them."""

from typing import Any

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.data import Examples
from fsl.errors import ConfigError
from fsl.inference.exits.exit_data import training_rows
from fsl.inference.exits.exit_losses import labels_of
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.frozen_features import FrozenFeatures
from fsl.objective import TokenClassification, as_objective


@checks_types(leave=("data", "objective"))
def copycat(model: ExitModel, data: Any, *, objective: Any = None, batch_size: int = 100) -> Examples:
    """Returns rows with the labels that the final exit gives them, for `train_exits` to train heads on.

    `data`: inputs alone, also by name, or as `train_exits` takes it; labels of its own are not looked at, but for the
    padding of texts, which stays ignored. `objective`: that of the training. Bakhtiarnia et al. 2021 (arXiv
    2105.09121). ConfigError for data that draw rows at random, since each row is labelled once.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: at least 1")
    rows = training_rows(data)
    examples = rows.examples.of_one_length()  # else labels of tokens would have different lengths
    if examples.draws:
        raise ConfigError("data: the final exit labels each row once, and these rows are drawn anew each time")
    chosen = as_objective(objective)
    finals = FrozenFeatures(model, examples, batch_size, once=True)
    parts = [labels_of(finals.of(some).final, chosen).cpu() for some in torch.arange(len(examples)).split(batch_size)]
    labels = torch.cat(parts)
    if rows.labelled and isinstance(chosen, TokenClassification) and labels.shape == examples.targets.shape:
        labels = labels.where(examples.targets != chosen.ignore_index, chosen.ignore_index)
    return Relabelled(examples, labels)


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
