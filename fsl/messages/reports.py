"""Reports on a round of training: one per device, one per cohort."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fsl.segments.sums import Total


@dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """One device's round in numbers: sums, so that they can be added up over devices."""

    device: int
    samples: int  # n_k, what the device holds
    examples: int  # rows trained on
    steps: int
    skipped: int  # rows left out because a batch of one cannot be normalised
    loss_sum: float  # over steps: a step's mean loss times what it counts, as a rule its rows
    loss_weight: float  # sum of the steps' weights in `loss_sum`
    up_bytes: int
    down_bytes: int
    model_bytes: int
    edge: int = 0  # where its round ended, if it moved
    moves: int = 0
    moved_bytes: int = 0  # between edges
    wasted_steps: int = 0  # served, and done again after a move; their bytes are in up_bytes and down_bytes
    restarts: int = 0  # how often it went back to an earlier step
    hop_up_bytes: int = 0  # between its edge and the server above, in a split with two hops
    hop_down_bytes: int = 0

    @property
    def mean_loss(self) -> float:
        """The device's mean training loss, whatever the size of its data; NaN where it trained on nothing."""
        return self.loss_sum / self.loss_weight if self.loss_weight else math.nan


@dataclass(frozen=True, kw_only=True)
class CohortResult:
    """A cohort's results: totals by segment, a report per device, and counts for the strategy's metrics.

    `lost`: devices whose work cannot be used, and why.
    """

    totals: Mapping[str, Total]
    reports: tuple[DeviceReport, ...]
    counts: Mapping[str, int]
    lost: Mapping[int, str] = field(default_factory=dict)
