"""Metrics from counts by class or by label: how often it was there, was predicted, and both."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fsl.errors import ConfigError
from fsl.metrics.metric_base import Metric, Scored
from fsl.objective.predictions import Kind, Predictions

Ratio = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # of there, predicted and both: over and under


def precision(there: Tensor, predicted: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which of those predicted are there."""
    return both, predicted


def recall(there: Tensor, predicted: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which of those there are predicted."""
    return both, there


def f1(there: Tensor, predicted: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the harmonic mean of precision and recall (Dice's coefficient)."""
    return 2 * both, there + predicted


def iou(there: Tensor, predicted: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """Returns intersection over union (Jaccard's index)."""
    return both, there + predicted - both


class ForTask(Metric):
    """A metric that knows what outputs predict, and for which kinds of predictions it has a meaning."""

    kinds: ClassVar[Sequence[Kind]]

    def update(self, batch: Scored) -> None:
        """Take in a batch's predictions."""
        assert batch.predictions is not None  # `refuse` has seen to it
        self.take(batch.predictions)

    def take(self, predictions: Predictions) -> None:
        """Take in a batch's predictions."""
        raise NotImplementedError

    def refuse(self, batch: Scored) -> None:
        """Raise ConfigError for another kind of predictions."""
        found = batch.predictions
        if found is None:
            raise ConfigError(
                "the objective does not say what outputs predict; give a function of (outputs, targets), an object "
                "with update, compute and reset, or an Objective with predictions()"
            )
        if found.kind not in self.kinds:
            raise ConfigError(f"it is for {' or '.join(self.kinds)}, and this run's outputs predict {found.kind}")


class ByClass(ForTask):
    """A ratio of counts, averaged over the classes (or labels) that are there or predicted.

    `over`: "macro", a mean in which classes weigh the same; "micro", one ratio over all of them; "there", a mean over
    the classes that are there.
    """

    kinds: ClassVar[Sequence[Kind]] = ("classes", "labels")
    higher_is_better = True

    def __init__(self, ratio: Ratio, over: str = "macro"):
        self._ratio = ratio
        self._over = over
        self._counts: Tensor | None = None  # (3, C): there, predicted, both

    def take(self, predictions: Predictions) -> None:
        """Count by class, by label."""
        scores, targets = predictions.scores, predictions.targets
        if predictions.kind == "labels":
            guessed = scores > 0.5
            found = torch.stack([targets.sum(0), guessed.sum(0), (targets & guessed).sum(0)])
        else:
            guessed, classes = scores.argmax(1), scores.shape[1]
            counted = (targets, guessed, targets[targets == guessed])
            found = torch.stack([values.bincount(minlength=classes) for values in counted])
        self._counts = found if self._counts is None else self._counts + found

    def compute(self) -> float:
        """Returns the average; NaN where nothing is there or predicted."""
        if self._counts is None:
            return math.nan
        there, predicted, both = self._counts.double()
        over, under = self._ratio(there, predicted, both)
        if self._over == "micro":
            return float(over.sum() / under.sum())
        known = there > 0 if self._over == "there" else there + predicted > 0
        # A class that is there and never predicted has a precision of 0, as in scikit-learn.
        ratios = torch.where(under > 0, over / under.clamp(min=1), 0.0)[known]
        return float(ratios.mean())


class TopKAccuracy(ForTask):
    """The share of targets among whose k largest scores is theirs."""

    kinds: ClassVar[Sequence[Kind]] = ("classes", "next tokens")
    higher_is_better = True

    def __init__(self, k: int):
        self._k = k
        self._right, self._all = 0, 0

    def take(self, predictions: Predictions) -> None:
        """Count the targets that are among the first k; of equal scores those of lower classes come first."""
        scores, targets = predictions.scores, predictions.targets
        own = scores.gather(1, targets[:, None])
        before = (scores > own) | ((scores == own) & (torch.arange(scores.shape[1]) < targets[:, None]))
        self._right += int((before.sum(1) < self._k).sum())
        self._all += len(targets)

    def compute(self) -> float:
        """Returns the share."""
        return self._right / self._all if self._all else math.nan

    def refuse(self, batch: Scored) -> None:
        """Raise ConfigError where k classes are all there are."""
        super().refuse(batch)
        assert batch.predictions is not None
        classes = batch.predictions.scores.shape[1]
        if self._k >= classes:
            raise ConfigError(f"the model has {classes} classes, so that it is always 1; give top1 to top{classes - 1}")


class ExactMatch(ForTask):
    """The share of samples all of whose labels are right."""

    kinds: ClassVar[Sequence[Kind]] = ("labels",)
    higher_is_better = True

    def __init__(self) -> None:
        self._right, self._all = 0, 0

    def take(self, predictions: Predictions) -> None:
        """Count the samples."""
        self._right += int(((predictions.scores > 0.5) == predictions.targets).all(1).sum())
        self._all += len(predictions.targets)

    def compute(self) -> float:
        """Returns the share."""
        return self._right / self._all if self._all else math.nan


class Perplexity(ForTask):
    """The exponential of the mean cross-entropy of the targets that count, without weights or label smoothing."""

    kinds: ClassVar[Sequence[Kind]] = ("next tokens", "classes")
    higher_is_better = False

    def __init__(self) -> None:
        self._sum, self._all = 0.0, 0

    def take(self, predictions: Predictions) -> None:
        """Add up the cross-entropies."""
        losses = torch.nn.functional.cross_entropy(predictions.scores, predictions.targets, reduction="none")
        self._sum += float(losses.double().sum())
        self._all += len(predictions.targets)

    def compute(self) -> float:
        """Returns the perplexity; infinite where the mean is too large for a float."""
        if not self._all:
            return math.nan
        mean = self._sum / self._all
        return math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan
