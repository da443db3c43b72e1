"""Weights of classes and labels from the counts of training targets."""

from torch import Tensor

from fsl.errors import DataError

BALANCED = "balanced"


def class_weights(labels: Tensor, classes: int) -> list[float]:
    """Returns n / (C n_c) for each class from labels (N,), so that all classes weigh the same together.

    As scikit-learn's `class_weight="balanced"` (King & Zeng 2001). DataError for a class without a sample.
    """
    counts = labels.bincount(minlength=classes).tolist()
    if missing := [k for k, count in enumerate(counts) if not count]:
        raise DataError(
            f"objective.class_weights=balanced: class {missing[0]} has no training sample, so no count gives it a "
            "weight; give a list with a weight for each class, or a model with fewer outputs"
        )
    return [len(labels) / (len(counts) * count) for count in counts]


def positive_weights(labels: Tensor) -> list[float]:
    """Returns, for each label of (N, L), the number of samples without it over those with it."""
    positive = (labels > 0.5).sum(0).tolist()
    for k, count in enumerate(positive):
        if not 0 < count < len(labels):
            raise DataError(
                f"objective.pos_weight=balanced: label {k} is on in {count} of {len(labels)} training samples, so no "
                "count gives it a weight; give a list with a weight for each label"
            )
    return [(len(labels) - count) / count for count in positive]
