"""All metrics that cloud, edges and devices serve, in training and in inference, as Prometheus would find them."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from fsl.deployment.cloud.cloud_metrics import CloudMetrics
from fsl.deployment.node import device_metrics
from fsl.deployment.node.node_metrics import NodeMetrics
from fsl.deployment.node.node_settings import NodeSettings
from fsl.inference.serving.answer import AnswerSeconds
from fsl.inference.serving.serving_metrics import PrometheusDeviceCounts, PrometheusEdgeCounts
from fsl.run.observers import RunInfo
from tests.helpers.node_setups import EDGE


@dataclass(frozen=True)
class Served:
    """A metric as docs name it, the names of its samples, and its labels."""

    name: str
    samples: frozenset[str]
    labels: frozenset[str]


def every_metric(folder, monkeypatch) -> list[Served]:
    """Every metric of a run's cloud and of a node of both roles; all that may be absent is there."""
    monkeypatch.setattr(device_metrics, "spent", lambda *_, **__: 1.0)
    config = {**EDGE, "role": "both", "devices": "0", "key": "k", "state": str(folder), "max-epsilon": 8.0}
    node = NodeMetrics(NodeSettings.read({**config, "metrics": "127.0.0.1:0"}))
    cloud = CloudMetrics("127.0.0.1:0", "1", folder, lambda: (1, 1))
    try:
        node.meters.edge.device_lost("absent", joined=False)
        node.meters.edge.refused("UNAVAILABLE")
        node.meters.edge.round_ended(False)
        node.meters.devices.device_lost("silent")
        node.meters.devices.round_ended(1.0)
        cloud.on_start(RunInfo("S", "M", "D", 1, 1, 1, None))
        scores = {"loss": 1.0, "train_loss": 1.0, "accuracy": 1.0, "epsilon_model": 1.0}
        cloud.on_round({"round": 1, "seconds": 1.0, "devices": 1, **scores})
        return [*_served(node.registry), *_served(cloud.registry), *_serving()]
    finally:
        node.close()
        cloud.close()


def _serving() -> list[Served]:
    """The metrics of an edge that serves a model, and of a device that asks it."""
    registry = CollectorRegistry()
    edge, device = PrometheusEdgeCounts(registry), PrometheusDeviceCounts(registry)
    edge.ended("answered")
    edge.refused("UNAVAILABLE")
    device.exited({"output": 1})
    device.answered("device", AnswerSeconds(), "late")
    return _served(registry)


def _served(registry: CollectorRegistry) -> list[Served]:
    found = []
    for metric in registry.collect():
        samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
        labels = {label for sample in samples for label in sample.labels} - {"le"}
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        found.append(Served(name, frozenset(sample.name for sample in samples), frozenset(labels)))
    return found
