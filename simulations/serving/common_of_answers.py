"""The common metrics of a device that has asked edges."""

from collections.abc import Sequence

import numpy as np

from fsl.inference.serving import DeviceFigures
from fsl.metrics.common_metrics import CommonValues
from fsl.round.evaluation import Score


def common_of_answers(
    score: Score, seconds: Sequence[float], figures: DeviceFigures, *, rows: int, took: float, memory_bytes: float
) -> CommonValues:
    """Returns what answers of `rows` rows each come to, of which `seconds` are known, over `took` seconds of asking.

    `completed`: the share of questions that were answered as they were meant to be, neither by a fallback nor not at
    all. `memory_bytes`: weights on the device.
    """
    answered, asked = len(seconds), len(seconds) + figures.unanswered
    if not answered:
        return CommonValues(memory_bytes=memory_bytes, completed=0.0 if asked else None)
    p50, p99 = (float(np.percentile(seconds, share, method="inverted_cdf")) for share in (50, 99))
    return CommonValues(
        accuracy=score.accuracy,
        loss=score.loss,
        latency_seconds=p50,
        latency_p99_seconds=p99,
        throughput=answered * rows / took,
        bytes_per_row=(figures.up_bytes + figures.down_bytes) / (answered * rows),
        rounds=figures.answers.get("edge", 0) / answered,
        memory_bytes=memory_bytes,
        completed=(answered - sum(figures.fallbacks.values())) / asked,
    )
