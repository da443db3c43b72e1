"""Describes the numbers of a run's rounds: shares, amounts or scores, their better direction, and their format."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fsl.simulations.reports.spreads import Kind, Spread

from fsl.run.observers import human_bytes
from fsl.run.plotting import BYTE_UNITS, TIME_UNITS, unit_for

NOTHING = "-"
BYTES = ("up_bytes", "down_bytes", "model_bytes")
ALL_BYTES = "bytes"  # up, down and model bytes together
_TITLES = {
    "accuracy": "test accuracy",
    "loss": "test loss",
    "train_loss": "training loss",
    "validation_accuracy": "validation accuracy",
    "validation_loss": "validation loss",
    "own_accuracy": "accuracy on devices' own rows",
    "own_accuracy_worst": "worst tenth's accuracy on own rows",
    "accuracy_worst": "worst tenth's test accuracy",
    "up_bytes": "smashed data, up",
    "down_bytes": "cut gradients, down",
    "model_bytes": "model states",
    ALL_BYTES: "bytes in all",
    "seconds": "wall time",
    "sim_seconds": "simulated time",
    "energy_joules": "energy",
}
_SHARE = re.compile(
    r"(^|_)(accuracy|f1|precision|recall|auc|auroc|iou|dice|exact_match|top\d+)(_macro|_micro)?(_worst)?$"
)
_HIGHER = re.compile(r"(^|_)(r2|psnr|ssim|bleu)(_worst)?$")
_LOWER = re.compile(
    r"(^|_)(loss|error|errors|mae|mse|rmse|nll|perplexity)(_worst)?$"
    r"|(^|_)(bytes|seconds|joules|std|skipped|nodes|steps|moves)$"
    r"|(^|_)epsilon(_|$)|^failed_"
)
_ADDS_UP = re.compile(r"(^|_)(bytes|seconds|joules|moves|skipped)$|^wasted_steps$|^failed_nodes$")


@dataclass(frozen=True)
class Measure:
    """A number of the rounds, by its column in `metrics.jsonl`; "bytes" is all traffic."""

    key: str

    @property
    def title(self) -> str:
        """Name in words: test accuracy."""
        return _TITLES.get(self.key, self.key)

    @property
    def share(self) -> bool:
        """True where it lies between 0 and 1, and is written in percent."""
        return _SHARE.search(self.key) is not None

    @property
    def adds_up(self) -> bool:
        """True where a run's value is the sum over its rounds, not the last round's."""
        return _ADDS_UP.search(self.key) is not None

    @property
    def lower_is_better(self) -> bool | None:
        """The better direction; None where it is unknown."""
        if self.share or _HIGHER.search(self.key):
            return False
        return True if _LOWER.search(self.key) else None

    @property
    def kind(self) -> Kind:
        """The kind that bounds its intervals."""
        return "share" if self.share else "amount" if self.adds_up else "score"

    @property
    def heading(self) -> str:
        """Heading of a column with a run's value: final accuracy (%); bytes in all."""
        name = self.key if self.key in ("accuracy", "loss") else self.title
        return name if self.adds_up else f"final {name}{' (%)' if self.share else ''}"

    @cached_property
    def words(self) -> Callable[[float], str]:
        """Function that writes a value: 93.05 (percent), 1.2 MB, 3.1 h, 0.412."""
        if self.share:
            return lambda value: f"{100 * value:.2f}"
        if self.key.endswith("bytes"):
            return human_bytes
        if self.key.endswith("seconds"):
            return human_seconds
        return "{:.4g}".format

    def spread(self, spread: Spread | None) -> str:
        """Write mean and standard deviation: `93.05 ± 0.16`."""
        if spread is None:
            return NOTHING
        if spread.std is None:
            return self.words(spread.mean)
        std = self.words(spread.std) if self.share or self.adds_up else f"{spread.std:.2g}"
        return f"{self.words(spread.mean)} ± {std}"

    def interval(self, spread: Spread | None) -> str:
        """Write the mean's 95 % interval: `[92.1, 94.0]`."""
        if spread is None or spread.low is None or spread.high is None:
            return NOTHING
        return f"[{self.words(spread.low)}, {self.words(spread.high)}]"

    def axis(self, values: Iterable[float]) -> tuple[float, str]:
        """Returns a factor for values on an axis, and the axis' label with the unit."""
        what = self.title if self.adds_up else f"final {self.title}"
        if self.share:
            return 100.0, f"{what} (%)"
        for ending, units in (("bytes", BYTE_UNITS), ("seconds", TIME_UNITS)):
            if self.key.endswith(ending):
                size, unit = unit_for(max(values), units)
                return 1 / size, f"{what} ({unit})"
        return 1.0, f"{what} (J)" if self.key.endswith("joules") else what


def numbers_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the columns that hold numbers in any of these rows, in their order."""
    return list(dict.fromkeys(key for row in rows for key, value in row.items() if key != "round" and is_number(value)))


def is_number(value: object) -> bool:
    """Returns whether a value of a row is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_of(rows: Sequence[Mapping[str, Any]], key: str, best: bool = False) -> float | None:
    """Returns a run's value of a measure: its sum, or its last (or best) round's value; None without one."""
    measure = Measure(key)
    keys = BYTES if key == ALL_BYTES else (key,)
    values = [float(row[key]) for row in rows for key in keys if is_number(row.get(key))]
    if not values:
        return None
    if best:
        return min(values) if measure.lower_is_better else max(values)
    return sum(values) if measure.adds_up else values[-1]


def human_seconds(seconds: float) -> str:
    """Write a duration in a suitable unit: 42.0 s, 12.5 min, 3.1 h."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
