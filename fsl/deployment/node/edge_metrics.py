"""Serves an edge's metrics to Prometheus, as an extra: `pip install 'fsl-flower[federation]'`."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from fsl.errors import ConfigError
from fsl.wire.edge.meter import EdgeMeter, Reason

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class PrometheusMeter(EdgeMeter):
    """Counts one edge's sessions, steps and bytes in a registry of its own; takes a few microseconds a step."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._sessions = Gauge("fsl_sessions", "Devices in a round that have a session.", registry=registry)
        self._closed = Counter("fsl_sessions_closed", "Devices that finished a round.", registry=registry)
        self._lost = Counter("fsl_devices_lost", "Devices that a round went on without.", ["reason"], registry=registry)
        self._stragglers = Counter(
            "fsl_stragglers", "Devices lost because nothing came from them in time.", registry=registry
        )
        self._rounds = Counter("fsl_rounds", "Rounds that ended.", ["outcome"], registry=registry)
        self._refused = Counter(
            "fsl_handshakes_refused", "Sessions refused, by gRPC status code.", ["code"], registry=registry
        )
        self._steps = Counter("fsl_steps", "Uploads that were served.", registry=registry)
        self._up = Counter("fsl_up_bytes", "Bytes of uploads that came, headers included.", registry=registry)
        self._down = Counter("fsl_down_bytes", "Bytes of replies, headers included.", registry=registry)
        self._seconds = Histogram(
            "fsl_step_seconds",
            "From the arrival of an upload to its reply leaving.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._inbox = Gauge("fsl_inbox_events", "Events that the edge has not looked at.", registry=registry)

    def round_began(self, waiting: Callable[[], int]) -> None:
        """Report the depth of this round's inbox from now on, read when Prometheus asks."""
        self._inbox.set_function(waiting)

    def round_ended(self, failed: bool) -> None:
        """Count a round, as done or failed."""
        self._rounds.labels("failed" if failed else "done").inc()

    def session_opened(self) -> None:
        """Count a session that is open."""
        self._sessions.inc()

    def session_closed(self) -> None:
        """Count a session that ended well."""
        self._sessions.dec()
        self._closed.inc()

    def device_lost(self, reason: Reason, joined: bool) -> None:
        """Count a device that was lost, by reason."""
        self._lost.labels(reason).inc()
        if reason == "straggler":
            self._stragglers.inc()
        if joined:
            self._sessions.dec()

    def refused(self, code: str) -> None:
        """Count a handshake that was refused."""
        self._refused.labels(code).inc()

    def uploaded(self, size: int) -> None:
        """Count an upload's bytes."""
        self._up.inc(size)

    def replied(self, size: int) -> None:
        """Count a reply's bytes."""
        self._down.inc(size)

    def served(self, seconds: float) -> None:
        """Count an upload as served."""
        self._steps.inc()
        self._seconds.observe(seconds)


class MetricsEndpoint:
    """Serves http://<host:port>/metrics of one edge; ConfigError where it cannot listen there."""

    def __init__(self, address: str):
        self.meter = PrometheusMeter()
        host, _, port = address.rpartition(":")
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), self.meter.registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"metrics={address}: the edge's metrics cannot be offered there ({error}); name a free host:port"
            ) from None

    @property
    def port(self) -> int:
        """The port on which it listens, also for an address with port 0."""
        return int(self._server.server_port)

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
