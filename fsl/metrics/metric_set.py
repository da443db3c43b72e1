"""A run's metrics by the names of their columns, and what they come to on a set of examples."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.metrics.metric_base import Metric, Scored
from fsl.objective import Objective

_NAME = re.compile(r"[A-Za-z]\w{0,99}")
_TAKEN = re.compile(
    r"(validation_|own_|epsilon_|best_).*|.*_(std|worst|bytes|seconds|joules|devices|nodes|broadcast|paper)"
    r"|loss|accuracy|averaged|ragged|round|train_loss|devices|examples|seconds|lost|restarted|losses_withheld|skipped|moves|uploads|wasted_steps"
    r"|dropped|distance_correlation|mutual_information|available|late|merges|cuts|arrivals|staleness_(mean|max)"
    r"|absent_.*|skipped_steps|(loss|accuracy)_(only|without)_.*|stopped_early"
)


@checks_types("metrics: ")
@dataclass(frozen=True)
class Metrics:
    """Metrics by name. ConfigError for a name that is no word, or that a round's row has already."""

    by_name: Mapping[str, Metric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.by_name:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"metrics: {name!r} names no column; give it a name of letters, digits and underscores: in Python "
                    "metrics={'my_name': function}, in YAML a key name beside _target_"
                )
            if _TAKEN.fullmatch(name):
                raise ConfigError(f"metrics: a round's row has, or may have, a column '{name}'; give another name")

    def __bool__(self) -> bool:
        return bool(self.by_name)

    @property
    def directions(self) -> dict[str, bool | None]:
        """Whether higher is better, by name; None where nobody says."""
        return {name: metric.higher_is_better for name, metric in self.by_name.items()}

    def fresh(self) -> "Metrics":
        """Returns copies of the metrics, for one evaluation."""
        return Metrics({name: copy.deepcopy(metric) for name, metric in self.by_name.items()})

    def update(self, outputs: Tensor, targets: Tensor, objective: Objective) -> None:
        """Take in a batch: outputs (B, ...), targets (B, ...)."""
        if self.by_name:
            batch = scored(outputs, targets, objective)
            for metric in self.by_name.values():
                metric.update(batch)

    def compute(self) -> dict[str, float]:
        """Returns each metric over all batches."""
        return {name: metric.compute() for name, metric in self.by_name.items()}


def scored(outputs: Tensor, targets: Tensor, objective: Objective) -> Scored:
    """Returns a batch as metrics take it."""
    outputs, targets = outputs.detach().cpu(), targets.cpu()
    return Scored(outputs, targets, objective.predictions(outputs, targets))
