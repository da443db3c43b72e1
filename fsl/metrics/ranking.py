"""Metrics of how scores rank samples, by scikit-learn."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsl.errors import ConfigError
from fsl.metrics.by_class import ForTask
from fsl.metrics.metric_base import Scored
from fsl.objective.predictions import Kind, Predictions


class Ranking(ForTask):
    """A figure of one class against the rest, averaged over the classes (or labels) of which there are both kinds.

    Two classes have one figure, that of the second class. NaN where no class has samples of both kinds, as on a device
    that holds one class. It keeps the scores of all samples of an evaluation.
    """

    kinds: ClassVar[Sequence[Kind]] = ("classes", "labels")
    higher_is_better = True

    def __init__(self, figure: Literal["auc", "average_precision"]):
        self._figure = figure
        self._scores: list[Tensor] = []
        self._targets: list[Tensor] = []

    def take(self, predictions: Predictions) -> None:
        """Keep a batch's scores."""
        one_of_many = predictions.kind == "classes"
        self._scores.append(predictions.scores.double().softmax(1) if one_of_many else predictions.scores.double())
        self._targets.append(predictions.targets)

    def compute(self) -> float:
        """Returns the average over classes."""
        if not self._scores:
            return math.nan
        scores, targets = torch.cat(self._scores), torch.cat(self._targets)
        if targets.dim() == 1:
            targets = targets[:, None] == torch.arange(scores.shape[1])
            if scores.shape[1] == 2:
                scores, targets = scores[:, 1:], targets[:, 1:]
        mixed = targets.any(0) & ~targets.all(0)
        if not bool(mixed.any()) or not bool(scores.isfinite().all()):
            return math.nan
        figure = _figure(self._figure)
        found = [figure(targets[:, k].numpy(), scores[:, k].numpy()) for k in mixed.nonzero().flatten().tolist()]
        return float(sum(found) / len(found))

    def refuse(self, batch: Scored) -> None:
        """Raise ConfigError for pixels and tokens: it would keep the scores of all of them."""
        super().refuse(batch)
        assert batch.predictions is not None
        if batch.predictions.parts:
            raise ConfigError("it ranks samples, and here each has a class for each of its parts; use iou or f1")


def _figure(name: str) -> Callable[..., float]:
    from sklearn import metrics  # a second to import

    return metrics.roc_auc_score if name == "auc" else metrics.average_precision_score
