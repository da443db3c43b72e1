"""What is said of a round of training, device by device."""

from collections.abc import Mapping
from dataclasses import dataclass

from fsl.states import Total


@dataclass(frozen=True)
class DeviceReport:
    """One device's round in figures; sums, never means."""

    device: int
    samples: int  # n_k, what the device holds
    examples: int  # rows trained on
    steps: int
    skipped: int  # rows left out because a batch of one cannot be normalised
    loss: float  # summed over rows
    up_bytes: int
    down_bytes: int
    model_bytes: int
    edge: int = 0  # where its round ended, if it moved
    moves: int = 0
    moved_bytes: int = 0  # between edges
    wasted_steps: int = 0  # served, and done again after a move; their bytes are in up_bytes and down_bytes


@dataclass(frozen=True)
class CohortResult:
    """What a cohort's round leaves: totals by segment, a report per device, and counts for the strategy's metrics."""

    totals: Mapping[str, Total]
    reports: tuple[DeviceReport, ...]
    figures: Mapping[str, int]
