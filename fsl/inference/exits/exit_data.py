"""The data that exits are trained on and measured by: with targets, or inputs alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsl.data import Examples, TaskData, as_examples
from fsl.errors import ConfigError
from fsl.inference.exits.confidences import max_softmax, one_minus_entropy
from fsl.inference.exits.exit_model import ExitModel
from fsl.objective import Elementwise, Objective, as_objective
from fsl.segments.tensor_trees import TensorTree


@dataclass(frozen=True)
class GivenRows:
    """Rows that a user gave; of inputs alone (not `labelled`) the targets are zeros, which mean nothing."""

    examples: Examples
    labelled: bool

    @staticmethod
    def of(data: Any) -> "GivenRows":
        """Read (inputs, targets), Examples or a Dataset, or inputs alone: a tensor, or tensors by name."""
        if isinstance(data, GivenRows):
            return data
        if isinstance(data, TensorTree):
            data = data.values()
        if isinstance(data, np.ndarray):
            data = torch.from_numpy(data)
        if isinstance(data, Tensor):
            alone: Any = data
        elif isinstance(data, Mapping) and data and all(isinstance(one, Tensor | np.ndarray) for one in data.values()):
            alone = next(iter(data.values()))
        else:
            examples = as_examples(data)
            if not len(examples):
                raise ConfigError("data: it has no rows; give at least one")
            return GivenRows(examples, True)
        if not alone.ndim or not len(alone):
            raise ConfigError(f"data: inputs of shape {tuple(alone.shape)} have no rows; give (N, ...)")
        return GivenRows(as_examples((data, torch.zeros(len(alone)))), False)

    def fitted(self, model: ExitModel, objective: Any, which: str) -> Objective:
        """Returns an objective that knows these targets; ConfigError where they do not fit it, or the model's outputs.

        `which`: "training", or what else these data are. Without targets it is the objective as it was given.
        """
        found = as_objective(objective)
        if isinstance(found, Elementwise) and model.sureness in (max_softmax, one_minus_entropy):
            raise ConfigError(
                f"objective={found.name}: outputs are numbers, and the exits' confidence {model.confidence_name} is of "
                "classes; make them with ExitModel(confidence='none'), or a function from outputs to (B,)"
            )
        if not self.labelled:
            return found
        inputs, targets = self.examples.batch(torch.arange(min(2, len(self.examples))))
        outputs = model.outputs_at("output", inputs.to(model.place)).cpu()
        found = found.fit(self.examples.targets, outputs)
        found.check(outputs, targets)
        found.check_targets(outputs, self.examples.targets, which)
        return found


def training_rows(data: Any) -> GivenRows:
    """Returns the rows to train on: a task's training rows, or those that a user gave."""
    return GivenRows.of(data.train if isinstance(data, TaskData) else data)


def measured_rows(data: Any) -> GivenRows:
    """Returns the rows to measure on; ConfigError for a task, which does not say whether training or test rows."""
    if isinstance(data, TaskData):
        raise ConfigError(
            "data: a task has the rows that its model was trained on, and test rows; give those to measure on, as "
            "task.test, or rows held out for validation"
        )
    return GivenRows.of(data)
