"""Counts an edge's work for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fsl.deployment.metrics_endpoint import STEP_SECONDS
from fsl.wire.edge.meter import EdgeMeter, Reason


class PrometheusEdgeMeter(EdgeMeter):
    """Counts one edge's sessions, steps and bytes; takes a few microseconds a step."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._round = Gauge("fsl_edge_round", "Number of the newest round that it served.", registry=registry)
        self._sessions = Gauge("fsl_edge_sessions", "Devices in a round that have a session.", registry=registry)
        self._closed = Counter("fsl_edge_sessions_closed", "Devices that finished a round.", registry=registry)
        self._lost = Counter(
            "fsl_edge_devices_lost", "Devices that a round went on without.", ["reason"], registry=registry
        )
        self._rounds = Counter("fsl_edge_rounds", "Rounds that ended.", ["outcome"], registry=registry)
        self._refused = Counter(
            "fsl_edge_handshakes_refused", "Sessions refused, by gRPC status code.", ["code"], registry=registry
        )
        self._steps = Counter("fsl_edge_steps", "Uploads that were served.", registry=registry)
        self._up = Counter("fsl_edge_up_bytes", "Bytes of uploads that came, headers included.", registry=registry)
        self._down = Counter("fsl_edge_down_bytes", "Bytes of replies, headers included.", registry=registry)
        self._seconds = Histogram(
            "fsl_edge_step_seconds",
            "From the arrival of an upload to its reply leaving.",
            buckets=STEP_SECONDS,
            registry=registry,
        )
        self._inbox = Gauge("fsl_edge_inbox_events", "Events that the edge has not looked at.", registry=registry)

    def round_began(self, round: int, waiting: Callable[[], int]) -> None:
        """Report the depth of this round's inbox from now on, read when Prometheus asks."""
        self._round.set(round)
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
