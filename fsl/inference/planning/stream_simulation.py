"""Simulates a stream of requests under a policy that knows no more than a device would."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.planning.rate_estimator import RateEstimator
from fsl.inference.planning.request_stream import Clocks, RequestStream, StreamResult, serve
from fsl.inference.planning.split_costs import LinkState
from fsl.inference.planning.split_policy import SplitPolicy

_LARGEST_PROBE = 16 << 20  # bytes


@checks_types()
@dataclass(frozen=True)
class LinkProbes:
    """What a device sends to learn the rate: so many bytes where no transfer has told it for so many seconds.

    A probe that was too small or too quick to tell is followed by one of twice its bytes, up to 16 MiB.
    """

    bytes: int = 16384
    every_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.bytes < 1 or not 0 < self.every_seconds < math.inf:
            raise ConfigError(f"{self}: at least one byte, and a time above 0")


@checks_types()
def simulate_requests(
    stream: RequestStream,
    policy: SplitPolicy,
    estimator: RateEstimator | None = None,
    probes: LinkProbes | None = None,
) -> StreamResult:
    """Serve each request of a stream as a policy chooses when the device begins with it.

    The policy is told the edge's load, how long edge and link are busy with earlier requests, and the rates: up as it
    is at that second, or with an `estimator` what that makes of the transfers that had ended by then (0 until it knows,
    so that everything stays local; `probes` then tell it). The rate down is told always, since answers are too small to
    tell it. Policy and estimator are changed: give new ones for each stream.
    """
    clocks, done, learnt = Clocks.start(stream.servers), [], _Learnt(estimator, probes)
    for arrival in stream.arrivals:
        start = max(arrival, clocks.device)
        link = learnt.probed(stream, start, clocks.link)
        clocks = Clocks(clocks.device, link, clocks.servers)
        rate = stream.up.at(start) if estimator is None else learnt.rate(start)
        state = LinkState(
            up_mbit=rate,
            down_mbit=stream.down.at(start),
            rtt_seconds=stream.rtt_seconds,
            link_seconds=max(0.0, clocks.link - start),
            edge_seconds=max(0.0, clocks.servers[0] - start),
            load=stream.load.at(start),
            waited_seconds=start - arrival,
        )
        request, clocks = serve(stream, arrival, policy.choose(state, start), clocks)
        learnt.sent(request.sent, request.spent.up_bytes, request.sent - request.sending)
        done.append(request)
    return StreamResult(policy.name, tuple(done), learnt.probe_bytes, stream.costs.power)


@dataclass(frozen=True)
class _Transfer:
    """Bytes that crossed a link in so many seconds, the last one at second `end`."""

    end: float
    size: float
    seconds: float
    probe: bool


class _Learnt:
    """What a device has learnt of the rate: transfers count from their end on."""

    def __init__(self, estimator: RateEstimator | None, probes: LinkProbes | None):
        self.estimator, self.probes = estimator, probes
        self.probe_bytes = 0.0
        self._probe = 0 if probes is None else probes.bytes
        self._pending: deque[_Transfer] = deque()
        self._told = -math.inf

    def sent(self, end: float, size: float, seconds: float, probe: bool = False) -> None:
        """Take note of a transfer that ends then."""
        if size:
            self._pending.append(_Transfer(end, size, seconds, probe))

    def rate(self, now: float) -> float:
        """Returns the rate as it is known now."""
        assert self.estimator is not None
        for transfer in self._ended(now):
            if self.estimator.observe(transfer.size, transfer.seconds):
                self._told = max(self._told, transfer.end)
            elif transfer.probe and self._probe < _LARGEST_PROBE:
                self._probe = min(2 * self._probe, _LARGEST_PROBE)
            elif transfer.probe:  # in vain: the next one waits its time
                self._told = max(self._told, transfer.end)
        return 0.0 if self.estimator.mbit is None else self.estimator.mbit

    def probed(self, stream: RequestStream, now: float, free: float) -> float:
        """Send a probe where it is time for one; returns from when on the link is free."""
        if self.estimator is None or self.probes is None:
            return free
        self.rate(now)
        if self._pending or now - self._told < self.probes.every_seconds:
            return free
        begun = max(now, free)
        end = stream.up.transfer_end(begun, self._probe)
        self.sent(end, self._probe, end - begun, probe=True)
        self.probe_bytes += self._probe
        return end

    def _ended(self, now: float) -> Iterator["_Transfer"]:
        while self._pending and self._pending[0].end <= now:
            yield self._pending.popleft()
