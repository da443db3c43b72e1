"""Metrics of numbers: errors, and the share of the variance that is explained."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsl.metrics.by_class import ForTask
from fsl.objective.predictions import Kind, Predictions


class MeanError(ForTask):
    """The mean absolute error, the mean squared error or its root, over all numbers."""

    kinds: ClassVar[Sequence[Kind]] = ("numbers",)
    higher_is_better = False

    def __init__(self, figure: Literal["mae", "mse", "rmse"]):
        self._figure = figure
        self._sum, self._all = 0.0, 0

    def take(self, predictions: Predictions) -> None:
        """Add up the errors."""
        errors = predictions.scores - predictions.targets
        self._sum += float((errors.abs() if self._figure == "mae" else errors.square()).sum())
        self._all += errors.numel()

    def compute(self) -> float:
        """Returns the mean, or its root."""
        mean = self._sum / self._all if self._all else math.nan
        return math.sqrt(mean) if self._figure == "rmse" else mean


class R2(ForTask):
    """One minus the squared error over the targets' variance, a mean over outputs, as scikit-learn's `r2_score`.

    NaN where an output's targets are all the same.
    """

    kinds: ClassVar[Sequence[Kind]] = ("numbers",)
    higher_is_better = True

    def __init__(self) -> None:
        self._origin: Tensor | None = None  # a target, from which others differ little: sums of squares stay exact
        self._sums: Tensor | None = None  # (3, K): squared errors, targets, squared targets
        self._rows = 0

    def take(self, predictions: Predictions) -> None:
        """Add up squares by output."""
        if not len(predictions.targets):
            return
        if self._origin is None:
            self._origin = predictions.targets[0].clone()
        off, errors = predictions.targets - self._origin, predictions.scores - predictions.targets
        found = torch.stack([errors.square().sum(0), off.sum(0), off.square().sum(0)])
        self._sums = found if self._sums is None else self._sums + found
        self._rows += len(off)

    def compute(self) -> float:
        """Returns the mean over outputs."""
        if self._sums is None:
            return math.nan
        squared_errors, total, squares = self._sums
        variances = squares - total.square() / self._rows
        if bool((variances <= 0).any()):
            return math.nan
        return float((1 - squared_errors / variances).mean())
