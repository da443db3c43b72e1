"""Serves a node's metrics to Prometheus, for as long as its process lives: runs come and go meanwhile."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from fsl.deployment.metrics_endpoint import MetricsEndpoint
from fsl.deployment.node.device_metrics import PrometheusDeviceMeter, SpentEpsilon
from fsl.deployment.node.edge_metrics import PrometheusEdgeMeter
from fsl.deployment.node.meters import Meters
from fsl.deployment.node.node_settings import NodeSettings
from fsl.wire.device.device_meter import DeviceMeter
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.line.line_meter import LineMeter


class PrometheusLineMeter(LineMeter):
    """Tells whether a node's line to the cloud is open, and counts how often it came back."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge("fsl_node_line_open", "1 while the line to a run's cloud is open.", registry=registry)
        self._again = Counter("fsl_node_line_reconnects", "Times that the line came back.", registry=registry)

    def opened(self, again: bool) -> None:
        """Count a line that is open."""
        self._open.set(1)
        self._again.inc(again)

    def broke(self) -> None:
        """Tell that the line is not open."""
        self._open.set(0)


class NodeMetrics:
    """A node's meters and their endpoint; `settings` has both `metrics` and `state`.

    ConfigError where it cannot listen there.
    """

    def __init__(self, settings: NodeSettings) -> None:
        assert settings.metrics is not None
        assert settings.state is not None
        self.registry = registry = CollectorRegistry()
        self.meters = Meters(
            PrometheusEdgeMeter(registry) if settings.serves else EdgeMeter(),
            PrometheusDeviceMeter(registry) if settings.hosts_devices else DeviceMeter(),
            PrometheusLineMeter(registry),
        )
        if settings.hosts_devices:
            registry.register(SpentEpsilon(settings))
        self._endpoint = MetricsEndpoint("metrics", settings.metrics, registry, settings.role, "state", settings.state)

    @property
    def address(self) -> str:
        """host:port at which it is served."""
        return self._endpoint.address

    def close(self) -> None:
        """End the endpoint."""
        self._endpoint.close()
