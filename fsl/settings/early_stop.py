"""When a run ends before its last round: a figure of its rounds has stopped getting better."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fsl.errors import ConfigError, one_of
from fsl.settings.option_groups import whole

Mode = Literal["min", "max"]
_LOWER = ("loss", "seconds", "bytes", "joules")


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Ends a run when a column of its rounds has not improved for so many rounds that have it.

    `metric`: a column of metrics.jsonl, as validation_loss. `patience`: rounds with a figure and without an
    improvement, after which the run ends. `min_delta`: what an improvement must exceed. `mode`: whether lower ("min")
    or higher ("max") is better; None: as is known of the metric.

    It remembers nothing: what it says follows from the rounds alone, so that a run which goes on says the same.
    """

    metric: str
    patience: int
    min_delta: float = 0.0
    mode: Mode | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise ConfigError(f"stop.metric={self.metric!r}: it must be a column of metrics.jsonl, as validation_loss")
        object.__setattr__(self, "patience", whole("stop.patience", self.patience, least=1))
        given = self.min_delta
        if isinstance(given, bool) or not isinstance(given, int | float) or not (math.isfinite(given) and given >= 0):
            raise ConfigError(f"stop.min_delta={given!r}: it must be a number of 0 or above, in the metric's unit")
        if self.mode is not None:
            one_of("stop.mode", self.mode, ("min", "max"))

    def with_mode(self, metrics: Mapping[str, bool | None]) -> "EarlyStop":
        """Returns it with a mode; ConfigError where nobody says which is better. `metrics`: whether higher is."""
        if self.mode is not None:
            return self
        bare = self.metric.removeprefix("validation_").removeprefix("own_").removesuffix("_worst").partition("_at_")[0]
        higher = True if bare == "accuracy" else metrics.get(bare)
        if self.metric.endswith("_std") or (higher is None and bare.endswith(_LOWER)):
            higher = False
        if higher is None:
            raise ConfigError(
                f"stop.mode: nobody says whether lower or higher is better of {self.metric}; give min or max"
            )
        return EarlyStop(
            metric=self.metric, patience=self.patience, min_delta=self.min_delta, mode="max" if higher else "min"
        )

    def reason(self, rows: Sequence[Mapping[str, Any]], evaluates: Callable[[int], bool]) -> str | None:
        """Returns why a run with these rounds ends; None where it goes on.

        `evaluates`: whether a round ends with an evaluation. One that should have a figure and has none, or none that
        is finite, is no improvement.
        """
        sign = -1.0 if self.mode == "max" else 1.0
        best, best_round, since = math.inf, 0, 0
        for row in rows:
            told = row.get(self.metric)
            value = sign * told if isinstance(told, int | float) and math.isfinite(told) else None
            if value is None and self.metric != "train_loss" and not evaluates(int(row["round"])):
                continue
            if value is not None and value < best - self.min_delta:
                best, best_round, since = value, int(row["round"]), 0
            else:
                since += 1
            if since >= self.patience:
                was = f"the best was {sign * best:.6g} in round {best_round}" if best_round else "it was never finite"
                return f"{self.metric} did not improve {since} time{'' if since == 1 else 's'} in a row; {was}"
        return None
