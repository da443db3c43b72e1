"""fsl's own list of common metrics: the same keys for a run that trains and for a policy that answers requests."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class CommonMetric:
    """One of the list: its key and unit, which direction is better, and what it is in training and in inference."""

    key: str
    title: str
    unit: str  # empty: a pure number
    higher: bool  # is better
    training: str
    inference: str


COMMON = (
    CommonMetric(
        "accuracy", "accuracy", "share", True,
        "right answers among the test targets that count, in the last evaluated round",
        "right answers of the choices made, as measured on the run's test rows, a mean over all requests",
    ),
    CommonMetric(
        "loss", "loss", "", False,
        "mean loss of the test targets that count, in the last evaluated round",
        "where answers have no accuracy, the mean loss of the choices made",
    ),
    CommonMetric(
        "convergence_rounds", "rounds to converge", "rounds", False,
        "the first evaluated round that comes within a point of the run's best accuracy; without accuracy, within "
        "1 % of the way from the first loss to the lowest",
        "none: nothing is trained",
    ),
    CommonMetric(
        "latency_seconds", "latency, median", "s", False,
        "of a round: simulated seconds where all rounds have them, else wall time",
        "of a request, from its arrival at the device to its answer",
    ),
    CommonMetric(
        "latency_p99_seconds", "latency, 99th percentile", "s", False,
        "of rounds, as above",
        "of requests, as above; none where some have no answer",
    ),
    CommonMetric(
        "throughput", "throughput", "rows/s", True,
        "rows trained on, by the seconds of all rounds",
        "rows answered, by the seconds from the first arrival to the last answer",
    ),
    CommonMetric(
        "bytes_per_row", "bytes a row", "B", False,
        "smashed data up, cut gradients down and model states, by the rows trained on",
        "payloads up and down of a request's row, probes included",
    ),
    CommonMetric(
        "rounds", "rounds", "rounds", False,
        "rounds of the run that devices took part in",
        "round trips to an edge that an answer took, in the mean",
    ),
    CommonMetric(
        "energy_joules_per_row", "devices' energy a row", "J", False,
        "simulated, by the profiles of devices and links",
        "by the device's power as it computes and waits, and its radio's",
    ),
    CommonMetric(
        "memory_bytes", "memory", "B", False,
        "the most that the process that led the run had in memory (resident), with earlier runs of that process",
        "weights that the device needs for all choices made",
    ),
    CommonMetric(
        "epsilon", "epsilon against the model's owner", "", False,
        "against who gets the released model, for the worst device; none without differential privacy, or where it is "
        "unbounded (privacy.json has every adversary)",
        "none: nothing protects requests",
    ),
    CommonMetric(
        "completed", "completed in spite of losses", "share", True,
        "devices that finished their rounds, of those that were asked to",
        "requests answered within the deadline",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class CommonValues:
    """A number, or None where there is none, for each of `COMMON`."""

    accuracy: float | None = None
    loss: float | None = None
    convergence_rounds: float | None = None
    latency_seconds: float | None = None
    latency_p99_seconds: float | None = None
    throughput: float | None = None
    bytes_per_row: float | None = None
    rounds: float | None = None
    energy_joules_per_row: float | None = None
    memory_bytes: float | None = None
    epsilon: float | None = None
    completed: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Returns numbers by key; None for those that are not finite, too."""
        return {key: value if value is None or math.isfinite(value) else None for key, value in asdict(self).items()}

    @staticmethod
    def of_json(given: Any) -> "CommonValues":
        """Read what `to_json` gave, and what of it an older run has; keys that are none of them are left out."""
        values = given if isinstance(given, Mapping) else {}
        return CommonValues(**{field.name: _number(values.get(field.name)) for field in fields(CommonValues)})


def _number(value: object) -> float | None:
    """Returns a finite number of a file; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None
