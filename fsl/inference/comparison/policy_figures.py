"""The figures of a policy on a stream of requests: what its answers are worth, and what they took."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.planning import SplitChoice, SplitCosts, StreamResult

_RISE = 0.1  # of the stream's length, by which waiting must have grown until its end where it never ends


@dataclass(frozen=True)
class PolicyFigures:
    """Means over a stream's requests, and percentiles of their seconds; what SC2 calls encoder size, bytes, quality.

    `quality`: accuracy, or minus the loss, of each request's choice in the mean. `up_bytes` of a request. `joules` of
    the device for one (None: power is not known). `encoder_bytes`: weights that the device needs for the largest of
    the choices made. `in_time`: the share of answers within the deadline. `overloaded`: requests came faster than
    they were served, so that seconds say how long the stream was, and nothing else.
    """

    policy: str
    quality: float
    up_bytes: float
    mean: float
    p50: float
    p90: float
    p99: float
    in_time: float
    joules: float | None
    encoder_bytes: int
    switches: int
    overloaded: bool
    choices: Mapping[str, int]


@checks_types()
def policy_figures(
    result: StreamResult,
    qualities: Mapping[SplitChoice, float],
    encoders: Mapping[SplitChoice, int],
    deadline_seconds: float = math.inf,
) -> PolicyFigures:
    """Returns a result's figures; `qualities` and `encoders` (bytes on the device) of every choice that it made.

    ConfigError for a choice that they do not have.
    """
    made = Counter(request.choice for request in result.requests)
    if unknown := [choice.title for choice in made if choice not in qualities or choice not in encoders]:
        raise ConfigError(f"{result.policy} chose {unknown[0]}, whose answers nobody measured")
    seconds, count = result.seconds, len(result.requests)
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 99), method="inverted_cdf"))
    joules = result.device_joules
    return PolicyFigures(
        policy=result.policy,
        quality=sum(qualities[choice] * times for choice, times in made.items()) / count,
        up_bytes=result.up_bytes / count,
        mean=result.mean,
        p50=p50,
        p90=p90,
        p99=p99,
        in_time=float((seconds <= deadline_seconds).mean()),
        joules=None if joules is None else joules / count,
        encoder_bytes=max(encoders[choice] for choice in made),
        switches=result.switches,
        overloaded=_overloaded(result),
        choices={choice.title: times for choice, times in made.most_common()},
    )


@checks_types()
def device_bytes(costs: SplitCosts) -> dict[SplitChoice, int]:
    """Returns the bytes of weights on the device, by choice."""
    return {choice: costs.device.point(choice.point).head.weight_bytes for choice in costs.choices(formats=True)}


def _overloaded(result: StreamResult) -> bool:
    """Whether the last tenth waits longer than the first by a tenth of what the stream took."""
    tenth = max(1, len(result.requests) // 10)
    long = result.requests[-1].arrival - result.requests[0].arrival
    if not long or not np.isfinite(result.seconds).all():
        return not np.isfinite(result.seconds).all()
    return bool(result.seconds[-tenth:].mean() - result.seconds[:tenth].mean() > _RISE * long)
