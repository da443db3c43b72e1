"""Measures loss, accuracy and metrics of a model on a set of examples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from fsl.data import Examples
from fsl.metrics import Metrics
from fsl.objective import Objective
from fsl.segments.calling import call
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import received

BATCH = 512  # rows; bounds the memory of an evaluation


@dataclass(frozen=True)
class Score:
    """Mean loss over the targets that count, the share of right answers (None where that has no meaning), metrics."""

    loss: float
    accuracy: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def columns(self, prefix: str = "") -> dict[str, float]:
        """Returns all of it under the names of a round's columns."""
        accuracy = {} if self.accuracy is None else {"accuracy": self.accuracy}
        return {
            f"{prefix}{name}": value for name, value in ({"loss": self.loss} | accuracy | dict(self.metrics)).items()
        }


def evaluate(
    modules: list[nn.Module],
    examples: Examples,
    objective: Objective,
    accelerator: torch.device,
    metrics: Metrics | None = None,
) -> Score:
    """Run segments behind each other over all examples in evaluation mode, and restore each module's mode."""
    total, weight, right, scored = 0.0, 0.0, 0, 0
    metrics = Metrics() if metrics is None else metrics.fresh()
    with evaluating(*modules), torch.no_grad():
        for rows in torch.arange(len(examples)).split(BATCH):
            inputs, targets = examples.batch(rows)
            outputs, targets = inputs.to(accelerator), targets.to(accelerator)
            for module in modules:
                outputs = received(call(module, outputs))
            counts = objective.weight(targets)
            if counts:
                total += float(objective.loss(outputs, targets)) * counts
                weight += counts
            if (correct := objective.correct(outputs, targets)) is not None:
                right += int(correct)
                scored += objective.scored(targets)
            metrics.update(outputs, targets, objective)
        loss, accuracy = total / weight if weight else math.nan, right / scored if scored else None
        return Score(loss, accuracy, metrics.compute())
