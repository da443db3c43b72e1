"""From what a user gives to metrics: names, functions of (outputs, targets), objects with update and compute."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.importing.building import build, built
from fsl.importing.import_paths import locate
from fsl.metrics.metric_base import Metric, Scored
from fsl.metrics.metric_set import Metrics
from fsl.metrics.named_metrics import ALWAYS, metric_named
from fsl.objective import Objective, takes_batch
from fsl.quoting import short

_WANTED = (
    "a name (f1), a function of (outputs, targets) that gives a number, an object with update, compute and reset, or "
    "the import path of one"
)


class FunctionMetric(Metric):
    """A function of all outputs (N, ...) and targets (N, ...) of an evaluation, which it keeps until then."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]):
        self.given = function
        self.higher_is_better = _direction(function)
        self._batches: list[tuple[Tensor, Tensor]] = []

    def update(self, batch: Scored) -> None:
        """Keep a batch."""
        self._batches.append((batch.outputs, batch.targets))

    def compute(self) -> float:
        """Returns the function's value over all batches."""
        if not self._batches:
            return math.nan
        outputs, targets = (torch.cat(each) for each in zip(*self._batches))
        return _number(self.given(outputs, targets), self.given)


class ObjectMetric(Metric):
    """An object with update(outputs, targets), compute() and reset(), as torchmetrics has them."""

    def __init__(self, given: Any):
        self.given = given
        self.higher_is_better = _direction(given)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ObjectMetric":
        found = ObjectMetric(copy.deepcopy(self.given, memo))
        if callable(reset := getattr(found.given, "reset", None)):
            reset()
        return found

    def update(self, batch: Scored) -> None:
        """Hand on a batch."""
        self.given.update(batch.outputs, batch.targets)

    def compute(self) -> float:
        """Returns what the object computes."""
        return _number(self.given.compute(), type(self.given))


def as_metrics(given: Any) -> Metrics | None:
    """A run's metrics from names, functions and objects: one, a list of them, or a mapping by name.

    None stands for those that are usual for the objective. ConfigError for anything else.
    """
    if given is None or isinstance(given, Metrics):
        return given
    if isinstance(given, Mapping) and "_target_" not in given:
        return Metrics({str(name): _metric(one) for name, one in given.items()})
    listed = [given] if isinstance(given, str | type | Mapping) or callable(given) or _accumulates(given) else given
    if isinstance(listed, bytes) or not isinstance(listed, Iterable):
        raise ConfigError(f"metrics={short(given, 80)}: give a list, each {_WANTED}")
    found: dict[str, Metric] = {}
    for one in listed:
        if isinstance(one, str) and one in ALWAYS:
            continue
        name = _name(one)
        if name in found:
            raise ConfigError(f"metrics: '{name}' is there twice; leave one out, or give one another name")
        found[name] = _metric(one)
    return Metrics(found)


@checks_types()
def metrics_of(given: Metrics | None, objective: Objective) -> Metrics:
    """The metrics that were given, or those that are usual for the objective."""
    return Metrics({name: metric_named(name) for name in objective.usual_metrics}) if given is None else given


def _metric(one: Any) -> Metric:
    if isinstance(one, str):
        if "." not in one:
            return metric_named(one)
        one = locate(one)
    elif isinstance(one, Mapping):
        options = {key: value for key, value in one.items() if key != "name"}
        target = options.get("_target_")
        found = locate(target) if isinstance(target, str) and "." in target else None
        itself = len(options) == 1 and callable(found) and not isinstance(found, type) and takes_batch(found)
        one = found if itself else build("metrics", options)
    if isinstance(one, type):
        one = built("metrics", one)
    if isinstance(one, Metric):
        return one
    if _accumulates(one):
        return ObjectMetric(one)
    if callable(one):
        return FunctionMetric(one)
    raise ConfigError(f"metrics={short(one, 80)}: it must be {_WANTED}")


def _name(one: Any) -> str:
    """The name of a metric's column: as given, or of its function or class."""
    if isinstance(one, str):
        return one.rpartition(".")[2]
    if isinstance(one, Mapping):
        return str(one.get("name", str(one.get("_target_", "")).rpartition(".")[2]))
    function = getattr(one, "func", one)  # of a partial
    return str(getattr(function, "__name__", type(one).__name__))


def _accumulates(one: Any) -> bool:
    return not isinstance(one, Mapping) and all(callable(getattr(one, name, None)) for name in ("update", "compute"))


def _direction(one: Any) -> bool | None:
    found = getattr(one, "higher_is_better", None)
    return found if isinstance(found, bool) else None


def _number(value: Any, who: Any) -> float:
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | int | float):
        return float(value)
    what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor | np.ndarray) else f"a {type(value).__name__}"
    raise ConfigError(f"metrics: {getattr(who, '__name__', who)} gives {what}; a metric is one number")
