"""The figures of a policy on a stream of requests: what its answers are worth, and what they took."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.comparison.cut_way import tensor_bytes
from fsl.inference.planning import SplitChoice, StreamResult
from fsl.inference.split_points import INPUT, OUTPUT, SplitPoints

_RISE = 0.1  # of the stream's length, by which waiting must have grown until its end where it never ends


@dataclass(frozen=True, kw_only=True)
class PolicyFigures:
    """Means over a stream's requests, and percentiles of their seconds; what SC2 calls encoder size, bytes, quality.

    `quality`: accuracy, or minus the loss, of each request's choice in the mean. `up_bytes` of a request, probes
    included. `joules` of the device for one, without probes (None: power is not known). `encoder_bytes`: weights that
    the device needs for all the choices made, each tensor once. `answered`: the share of requests that were; seconds
    are infinite where one was not. `in_time`: the share that was within the deadline. `throughput`: answers a second,
    from the first arrival to the last answer. `round_trips`: of a request, to the edge. `overloaded`: all were
    answered, and came faster than they were served, so that seconds say how long the stream was, and nothing else.
    """

    policy: str
    quality: float
    up_bytes: float
    down_bytes: float
    mean: float
    p50: float
    p90: float
    p99: float
    answered: float
    in_time: float
    throughput: float
    round_trips: float
    joules: float | None
    encoder_bytes: int
    switches: int
    overloaded: bool
    choices: Mapping[str, int]


@checks_types()
def policy_figures(
    result: StreamResult,
    qualities: Mapping[SplitChoice, float],
    weights: Mapping[SplitChoice, Mapping[int, int]],
    deadline_seconds: float = math.inf,
) -> PolicyFigures:
    """Returns a result's figures, by `qualities` of every choice that it made, and `weights` as `device_weights` gives.

    ConfigError for a choice that they do not have.
    """
    made = Counter(request.choice for request in result.requests)
    if unknown := [choice.title for choice in made if choice not in qualities or choice not in weights]:
        raise ConfigError(f"{result.policy} chose {unknown[0]}, whose answers nobody measured")
    seconds, count = result.seconds, len(result.requests)
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 99), method="inverted_cdf"))
    joules = result.device_joules
    return PolicyFigures(
        policy=result.policy,
        quality=sum(qualities[choice] * times for choice, times in made.items()) / count,
        up_bytes=result.up_bytes / count,
        down_bytes=sum(request.spent.down_bytes for request in result.requests) / count,
        mean=result.mean,
        p50=p50,
        p90=p90,
        p99=p99,
        answered=float(np.isfinite(seconds).mean()),
        in_time=float((np.isfinite(seconds) & (seconds <= deadline_seconds)).mean()),
        throughput=_throughput(result),
        round_trips=sum(bool(request.spent.up_bytes) for request in result.requests) / count,
        joules=None if joules is None else joules / count,
        encoder_bytes=sum({tensor: size for choice in made for tensor, size in weights[choice].items()}.values()),
        switches=result.switches,
        overloaded=_overloaded(result),
        choices={choice.title: times for choice, times in made.most_common()},
    )


@checks_types()
def device_weights(points: SplitPoints, choices: Sequence[SplitChoice]) -> dict[SplitChoice, dict[int, int]]:
    """Returns the bytes of each tensor on the device, by choice and the tensor's identity: several choices share some.

    What a codec's encoder adds is not among them.
    """
    sizes: dict[str, dict[int, int]] = {INPUT: {}, OUTPUT: tensor_bytes(points.model)}
    for point in {choice.point for choice in choices} - {INPUT, OUTPUT}:
        sizes[point] = tensor_bytes(points.parts(point)[0])
    return {choice: sizes[choice.point] for choice in choices}


def _throughput(result: StreamResult) -> float:
    ends = [request.end for request in result.requests if math.isfinite(request.end)]
    span = max(ends) - result.requests[0].arrival if ends else 0.0
    return len(ends) / span if span else 0.0


def _overloaded(result: StreamResult) -> bool:
    """Whether the last tenth waits longer than the first by a tenth of what the stream took."""
    tenth = max(1, len(result.requests) // 10)
    long = result.requests[-1].arrival - result.requests[0].arrival
    if not long or not np.isfinite(result.seconds).all():
        return False
    return bool(result.seconds[-tenth:].mean() - result.seconds[:tenth].mean() > _RISE * long)
