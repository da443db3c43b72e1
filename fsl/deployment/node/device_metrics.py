"""Counts the work of a node's devices for Prometheus, and tells what of their privacy is spent."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fsl.deployment.metrics_endpoint import ROUND_SECONDS, STEP_SECONDS
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.own_ledger import LEDGERS, spent
from fsl.errors import FslError
from fsl.wire.device.device_meter import DeviceMeter, Loss


class PrometheusDeviceMeter(DeviceMeter):
    """Counts the rounds, steps and bytes of one node's devices; takes a few microseconds a step."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._round = Gauge("fsl_device_round", "Number of the newest round that they attended.", registry=registry)
        self._attending = Gauge("fsl_device_attending", "Devices at work in a round.", registry=registry)
        self._rounds = Counter("fsl_device_rounds", "Rounds that ended.", ["outcome"], registry=registry)
        self._seconds = Histogram(
            "fsl_device_round_seconds",
            "From a round's message to the last of the node's devices.",
            buckets=ROUND_SECONDS,
            registry=registry,
        )
        self._finished = Counter("fsl_device_finished", "Devices that finished a round.", registry=registry)
        self._lost = Counter("fsl_device_lost", "Devices that did not finish.", ["reason"], registry=registry)
        self._steps = Counter("fsl_device_steps", "Steps that were made.", registry=registry)
        self._up = Counter("fsl_device_up_bytes", "Bytes of uploads, headers included.", registry=registry)
        self._down = Counter(
            "fsl_device_down_bytes", "Bytes of cut gradients that came, headers included.", registry=registry
        )
        self._waited = Histogram(
            "fsl_device_step_seconds",
            "From an upload to its cut gradient.",
            buckets=STEP_SECONDS,
            registry=registry,
        )
        self._reconnects = Counter(
            "fsl_device_reconnects", "Sessions that went on over another stream.", registry=registry
        )

    def round_began(self, round: int, devices: int) -> None:
        """Count these devices as at work."""
        self._round.set(round)
        self._attending.set(devices)

    def round_ended(self, seconds: float) -> None:
        """Count a round as done."""
        self._attending.set(0)
        self._rounds.labels("done").inc()
        self._seconds.observe(seconds)

    def round_failed(self) -> None:
        """Count a round as failed."""
        self._attending.set(0)
        self._rounds.labels("failed").inc()

    def device_finished(self, steps: int = 0) -> None:
        """Count a device that finished."""
        self._attending.dec()
        self._finished.inc()
        self._steps.inc(steps)

    def device_lost(self, loss: Loss) -> None:
        """Count a device that was lost, by reason."""
        self._attending.dec()
        self._lost.labels(loss).inc()

    def uploaded(self, size: int) -> None:
        """Count a step and its bytes."""
        self._steps.inc()
        self._up.inc(size)

    def replied(self, size: int, seconds: float) -> None:
        """Count a cut gradient's bytes, and how long it was waited for."""
        self._down.inc(size)
        self._waited.observe(seconds)

    def reconnected(self) -> None:
        """Count a session that goes on."""
        self._reconnects.inc()


class SpentEpsilon(Collector):
    """Reads what a node's own ledgers say, when Prometheus asks: nothing before there is one."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings

    def collect(self) -> Iterable[Metric]:
        """Yield the epsilon spent, over all runs, and its limit where the owner set one."""
        settings, limit = self._settings, self._settings.limit
        against = "model" if limit is None else limit.against
        if limit is not None:
            most = GaugeMetricFamily("fsl_device_epsilon_max", "The owner's limit, max-epsilon.", labels=["against"])
            most.add_metric([against], limit.epsilon)
            yield most
        if settings.state is None:
            return
        try:
            told = spent(settings.state / LEDGERS, against, same_rows=settings.rows == "all")
        except (FslError, OSError):
            told = float("nan")  # a damaged ledger: nobody knows
        if told is not None:
            found = GaugeMetricFamily(
                "fsl_device_epsilon", "Epsilon that the worst device has spent over all runs.", labels=["against"]
            )
            found.add_metric([against], told)
            yield found
