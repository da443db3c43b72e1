"""A stream of requests over one link to an edge with a queue: when each is computed, sent, served and answered."""

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.planning.rate_trace import RateTrace, speed_of
from fsl.inference.planning.request_spending import RequestSpending
from fsl.inference.planning.split_costs import DevicePower, RequestParts, SplitChoice, SplitCosts
from fsl.inference.profiles import SecondsSpread
from fsl.inference.split_points import OUTPUT


@checks_types()
@dataclass(frozen=True, kw_only=True)
class RequestStream:
    """A device's requests at the seconds `arrivals`, the link's rates (Mbit/s), and the edge's load and servers.

    The device computes one request after the other, and goes on with the next while one is sent. The link carries what
    goes up one after the other, in full at its rate; half of `rtt_seconds` later it is at the edge, where as many
    requests as there are `servers` are served at once, first in first out. Answers do not wait for each other. `load`:
    the share of each server's speed that others take, over time. ConfigError for what cannot be.
    """

    costs: SplitCosts
    arrivals: Sequence[float]
    up: RateTrace
    down: RateTrace
    rtt_seconds: float = 0.0
    load: RateTrace = field(default_factory=lambda: RateTrace.constant(0.0))
    servers: int = 1

    def __post_init__(self) -> None:
        arrivals = self.arrivals
        fit = all(0 <= second < math.inf for second in arrivals)
        if not len(arrivals) or not fit or any(b < a for a, b in zip(arrivals, arrivals[1:])):
            raise ConfigError("arrivals: give at least one second, from 0 on, finite, in order")
        if self.servers < 1 or not 0 <= self.rtt_seconds < math.inf:
            raise ConfigError(f"servers={self.servers}, rtt_seconds={self.rtt_seconds}: at least 1, and at least 0")
        assert self.speed

    @cached_property
    def speed(self) -> RateTrace:
        """The share of a server's speed that is left, over time."""
        return speed_of(self.load)


@checks_types()
def poisson_arrivals(per_second: float, count: int, seed: int) -> tuple[float, ...]:
    """Returns so many seconds of arrivals that come independently, so many a second in the mean."""
    if not 0 < per_second < math.inf or count < 1:
        raise ConfigError(f"per_second={per_second}, count={count}: the rate must be above 0, the count at least 1")
    gaps = seeds.numpy_generator(seed, "arrivals of requests").exponential(1 / per_second, count)
    return tuple(np.cumsum(gaps).tolist())


@dataclass(frozen=True)
class Clocks:
    """The seconds from which on the device, the link and each server, the soonest first, are free."""

    device: float
    link: float
    servers: tuple[float, ...]

    @staticmethod
    def start(servers: int) -> "Clocks":
        """Returns the clocks of a stream that begins."""
        return Clocks(0.0, 0.0, (0.0,) * servers)

    def not_before(self, second: float) -> "Clocks":
        """Returns the clocks for whoever can use nothing before a second."""
        servers = tuple(max(second, free) for free in self.servers)
        return Clocks(max(second, self.device), max(second, self.link), servers)


@dataclass(frozen=True)
class ServedRequest:
    """A request's seconds on its way, its choice, and what it spends beside.

    `arrival` and `start` on the device, `computed` there, `sending` and `sent` of the link, `serving` and `served` of
    the edge, `end` of the answer. Where the edge has no part in it, they are all `computed`.
    """

    choice: SplitChoice
    arrival: float
    start: float
    computed: float
    sending: float
    sent: float
    serving: float
    served: float
    end: float
    spent: RequestSpending

    @property
    def seconds(self) -> float:
        """From arrival to answer."""
        return self.end - self.arrival


def serve(stream: RequestStream, arrival: float, choice: SplitChoice, clocks: Clocks) -> tuple[ServedRequest, Clocks]:
    """Take a request from its arrival to its answer; returns it with the clocks of the next one."""
    return serve_parts(stream, arrival, choice, stream.costs.parts(choice), choice.point != OUTPUT, clocks)


def serve_parts(
    stream: RequestStream, arrival: float, choice: SplitChoice, parts: RequestParts, crosses: bool, clocks: Clocks
) -> tuple[ServedRequest, Clocks]:
    """Take a request made of such parts from its arrival to its answer; one that does not cross ends on the device."""
    start = max(arrival, clocks.device)
    computed = start + parts.head + parts.encode
    sending = sent = serving = served = end = computed
    link, servers = clocks.link, clocks.servers
    up = down = 0.0
    if crosses:
        sending = max(computed, clocks.link)
        link = sent = stream.up.transfer_end(sending, parts.up_bytes)
        serving = max(sent + stream.rtt_seconds / 2, clocks.servers[0])
        served = stream.speed.until(serving, parts.decode + parts.tail)
        others = list(clocks.servers[1:])
        insort(others, served)
        servers = tuple(others)
        answered = stream.down.transfer_end(served, parts.down_bytes)
        up, down = sent - sending, answered - served
        end = answered + stream.rtt_seconds / 2
    spent = RequestSpending.of(stream.costs.power, parts, up=up, down=down, waiting=end - computed - up - down)
    done = ServedRequest(
        choice=choice,
        arrival=arrival,
        start=start,
        computed=computed,
        sending=sending,
        sent=sent,
        serving=serving,
        served=served,
        end=end,
        spent=spent,
    )
    return done, Clocks(computed, link, servers)


@dataclass(frozen=True)
class StreamResult:
    """What became of a stream's requests under a policy; `probe_bytes` were sent to learn the rate.

    `power`: the device's, None where it is not known.
    """

    policy: str
    requests: tuple[ServedRequest, ...]
    probe_bytes: float = 0.0
    power: DevicePower | None = None

    @cached_property
    def seconds(self) -> np.ndarray:
        """Seconds from arrival to answer (N,), infinite where none came."""
        return np.array([request.seconds for request in self.requests])

    @property
    def mean(self) -> float:
        """Mean seconds of a request."""
        return float(self.seconds.mean())

    @property
    def spread(self) -> SecondsSpread:
        """Mean and percentiles of the seconds; ConfigError where a request was never answered."""
        return SecondsSpread.of(self.seconds.tolist())

    @property
    def up_bytes(self) -> float:
        """Bytes that went up, with those of probes."""
        return sum(request.spent.up_bytes for request in self.requests) + self.probe_bytes

    @property
    def device_joules(self) -> float | None:
        """The device's joules for all requests, without probes; None where power is not known.

        A second in which several requests wait is idle once, and one in which the device computes another is not idle:
        this is less than the sum of what each request costs alone. Seconds without any request are left out.
        """
        if self.power is None:
            return None
        alone = sum(request.spent.device_joules or 0.0 for request in self.requests)
        if math.isinf(alone):
            return alone
        idle, latest = 0.0, 0.0  # seconds, and the last answer so far
        nexts = [*(request.start for request in self.requests[1:]), math.inf]
        for request, start in zip(self.requests, nexts, strict=True):
            latest = max(latest, request.end)
            idle += max(0.0, min(start, latest) - request.computed)
        told = sum(request.end - request.computed for request in self.requests)
        return alone - self.power.idle_watts * (told - idle)

    @property
    def switches(self) -> int:
        """How often a request was divided in another way than the one before."""
        pairs = zip(self.requests, self.requests[1:])
        return sum(before.choice != after.choice for before, after in pairs)

    def regret(self, best: "StreamResult") -> float:
        """Returns by what share the mean is above that of another result on the same stream, as a clairvoyant's.

        0 where both are infinite. ConfigError for a result on other arrivals.
        """
        if [one.arrival for one in self.requests] != [one.arrival for one in best.requests]:
            raise ConfigError(f"best={best.policy!r}: it is of other arrivals; compare results on the same stream")
        if self.mean == best.mean:
            return 0.0
        return self.mean / best.mean - 1 if best.mean else math.inf
