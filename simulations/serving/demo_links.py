"""The links of a demonstration: traces of rates by name or file, from which second on, and a tunnel."""

from collections.abc import Sequence

from fsl.errors import ConfigError
from fsl.inference.planning import RateTrace
from fsl.inference.planning.rate_trace import SHIPPED

_AGAIN = 300.0  # seconds after which a trace that comes with fsl begins anew


def demo_trace(name: str) -> RateTrace:
    """Returns a trace that comes with fsl, or that of a CSV file; ConfigError for what is neither."""
    if name in SHIPPED:
        found = RateTrace.shipped(name)
        return RateTrace(found.seconds, found.values, _AGAIN)
    if not name.endswith(".csv"):
        raise ConfigError(f"links={name}: give {', '.join(SHIPPED)}, or the CSV file of a trace (second,mbit)")
    return RateTrace.read(name)


def from_second(trace: RateTrace, second: float) -> RateTrace:
    """Returns a trace as it is from a second on."""
    if not second:
        return trace
    period = trace.repeat_s
    if period is not None:
        second %= period
    later = [(at - second, value) for at, value in zip(trace.seconds, trace.values, strict=True) if at > second]
    pairs = [(0.0, trace.at(second)), *later]
    if period is not None:
        pairs += [(at + period - second, value) for at, value in zip(trace.seconds, trace.values) if at < second]
    return _of(pairs, period)


def with_tunnel(trace: RateTrace, begins: float, seconds: float) -> RateTrace:
    """Returns a trace whose rate is 0 from a second on, for so long."""
    if not seconds:
        return trace
    ends = begins + seconds
    pairs = [(at, value) for at, value in zip(trace.seconds, trace.values, strict=True) if not begins <= at <= ends]
    pairs += [(begins, 0.0), (ends, trace.at(ends))]
    period = trace.repeat_s
    return _of(sorted(pairs), None if period is None else max(period, ends + 1.0))


def _of(pairs: Sequence[tuple[float, float]], period: float | None) -> RateTrace:
    return RateTrace(tuple(at for at, _ in pairs), tuple(value for _, value in pairs), period)
