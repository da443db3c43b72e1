"""Metrics by name."""

import difflib
import re
from collections.abc import Callable, Mapping
from functools import partial

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.metrics.by_class import ByClass, ExactMatch, Perplexity, TopKAccuracy, f1, iou, precision, recall
from fsl.metrics.errors_of_numbers import R2, MeanError
from fsl.metrics.metric_base import Metric
from fsl.metrics.ranking import Ranking

NAMES: Mapping[str, Callable[[], Metric]] = {
    "balanced_accuracy": partial(ByClass, recall, "there"),
    "f1": partial(ByClass, f1),
    "f1_micro": partial(ByClass, f1, "micro"),
    "precision": partial(ByClass, precision),
    "recall": partial(ByClass, recall),
    "iou": partial(ByClass, iou),
    "auc": partial(Ranking, "auc"),
    "average_precision": partial(Ranking, "average_precision"),
    "exact_match": ExactMatch,
    "perplexity": Perplexity,
    "mae": partial(MeanError, "mae"),
    "mse": partial(MeanError, "mse"),
    "rmse": partial(MeanError, "rmse"),
    "r2": R2,
}
ALWAYS = ("loss", "accuracy")  # computed with or without being asked for, where the objective has them
_TOP = re.compile(r"top([1-9]\d{0,5})")


@checks_types()
def metric_named(name: str) -> Metric:
    """The metric of this name, empty; ConfigError for a name that there is not."""
    if name in NAMES:
        return NAMES[name]()
    if found := _TOP.fullmatch(name):
        return TopKAccuracy(int(found[1]))
    near = difflib.get_close_matches(name, [*NAMES, *ALWAYS], n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    raise ConfigError(
        f"metrics: there is no metric '{name}'{hint} there are {', '.join((*ALWAYS, *NAMES))}, top5 (top<k>), and your "
        "own by import path"
    )
