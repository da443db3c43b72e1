"""Measures loss, accuracy and metrics of a model on a set of examples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fsl.data import Examples
from fsl.metrics import Metrics
from fsl.objective import Objective
from fsl.segments.calling import call
from fsl.segments.labelled_parts import heard
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import Values, received, tensors_of
from fsl.split.exit_tap import exit_taps

BATCH = 512  # rows; bounds the memory of an evaluation
_OUTPUTS = 1 << 28  # bytes of outputs at once, where a row has many: a language model's, or a picture's
_PROBED = 8  # rows, by which the outputs of others are weighed


@dataclass(frozen=True)
class Score:
    """Mean loss over the targets that count, the share of right answers (None where that has no meaning), metrics."""

    loss: float
    accuracy: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    at_exits: Mapping[str, "Score"] = field(default_factory=dict)  # of early exits, by their points

    def columns(self, prefix: str = "") -> dict[str, float]:
        """Returns all of it under the names of a round's columns."""
        accuracy = {} if self.accuracy is None else {"accuracy": self.accuracy}
        return {
            f"{prefix}{name}": value for name, value in ({"loss": self.loss} | accuracy | dict(self.metrics)).items()
        }

    def exit_columns(self, prefix: str = "") -> dict[str, float]:
        """Returns loss and accuracy of early exits, as `accuracy_at_pool1`."""
        return {
            f"{prefix}{name}_at_{point}": value
            for point, score in self.at_exits.items()
            for name, value in score.columns().items()
        }


class Tally:
    """Adds up loss, right answers and metrics, batch by batch."""

    def __init__(self, objective: Objective, metrics: Metrics | None = None):
        self._objective = objective
        self._metrics = Metrics() if metrics is None else metrics.fresh()
        self._total, self._weight, self._right, self._scored = 0.0, 0.0, 0, 0

    def add(self, outputs: Any, wanted: Tensor) -> tuple[float, float]:
        """Take in outputs (B, ...) and targets (B, ...); returns their mean loss (0 if none counts) and its weight."""
        objective = self._objective
        counts, loss = objective.weight(wanted), 0.0
        if counts:
            loss = float(objective.loss(outputs, wanted))
            self._total += loss * counts
            self._weight += counts
        if (correct := objective.correct(outputs, wanted)) is not None:
            self._right += int(correct)
            self._scored += objective.scored(wanted)
        self._metrics.update(outputs, wanted, objective)
        return loss, counts

    def score(self) -> Score:
        """Returns the score of all batches."""
        loss = self._total / self._weight if self._weight else math.nan
        return Score(loss, self._right / self._scored if self._scored else None, self._metrics.compute())


def evaluate(
    modules: list[nn.Module],
    examples: Examples,
    objective: Objective,
    accelerator: torch.device,
    metrics: Metrics | None = None,
) -> Score:
    """Run segments behind each other over all examples in evaluation mode, and restore each module's mode."""
    tally, at_once = Tally(objective, metrics), None
    exits = [tap for module in modules for tap in exit_taps(module)]
    at_exits = {tap.exit.point: Tally(objective) for tap in exits}
    with evaluating(*modules), torch.no_grad(), heard(exits) as heads:
        for rows in torch.arange(len(examples)).split(BATCH):
            inputs, targets = examples.batch(rows)
            inputs, targets = inputs.to(accelerator), targets.to(accelerator)
            at_once = _at_once(modules, inputs, targets) if at_once is None else at_once
            for some in torch.arange(len(targets)).split(at_once):
                few = slice(int(some[0]), int(some[-1]) + 1)
                tally.add(_outputs(modules, inputs[few]), targets[few])
                for found, outputs in zip(at_exits.values(), heads, strict=True):
                    found.add(outputs[-1], targets[few])
                    outputs.clear()
        return replace(tally.score(), at_exits={point: found.score() for point, found in at_exits.items()})


def _outputs(modules: list[nn.Module], inputs: Values) -> Any:
    values: Any = inputs
    for module in modules:
        values = received(call(module, values))
    return values


def _at_once(modules: list[nn.Module], inputs: Values, targets: Tensor) -> int:
    """Returns how many rows to run at once: all of a batch, unless the outputs of a row's many targets are large."""
    if targets.dim() == 1 or not len(targets):
        return BATCH
    few = min(_PROBED, len(targets))
    size = sum(tensor.nbytes for tensor in tensors_of(_outputs(modules, inputs[:few])))
    return max(1, min(BATCH, _OUTPUTS * few // max(1, size)))
