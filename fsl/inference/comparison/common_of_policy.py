"""The common metrics of a policy at work."""

import math

from fsl.argument_types import checks_types
from fsl.inference.comparison.policy_figures import PolicyFigures
from fsl.metrics.common_metrics import CommonValues


@checks_types()
def common_of_policy(figures: PolicyFigures, batch: int = 1, *, has_accuracy: bool = True) -> CommonValues:
    """Returns what a policy's figures come to, for requests of `batch` rows; `has_accuracy`: quality is one."""
    return CommonValues(
        accuracy=figures.quality if has_accuracy else None,
        loss=None if has_accuracy else -figures.quality,
        latency_seconds=_finite(figures.p50),
        latency_p99_seconds=_finite(figures.p99) if figures.answered == 1 else None,
        throughput=figures.throughput * batch,
        bytes_per_row=(figures.up_bytes + figures.down_bytes) / batch,
        rounds=figures.round_trips,
        energy_joules_per_row=None if figures.joules is None else _finite(figures.joules / batch),
        memory_bytes=float(figures.encoder_bytes),
        completed=figures.in_time,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
