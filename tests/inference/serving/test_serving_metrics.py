"""What a serving edge and its devices count is what happened, in their figures and for Prometheus alike."""

import urllib.request

from prometheus_client import CollectorRegistry

from fsl.deployment.metrics_endpoint import MetricsEndpoint
from fsl.inference.serving import Batching, InferenceDevice, InferenceEdge
from fsl.inference.serving.serving_metrics import PrometheusDeviceCounts, PrometheusEdgeCounts
from tests.helpers.asking import Asker, channel_to
from tests.helpers.served import batch, served

POINTS = served("MLP")


def test_prometheus_is_told_what_happened():
    registry = CollectorRegistry()
    edge_counts, device_counts = PrometheusEdgeCounts(registry), PrometheusDeviceCounts(registry)
    with InferenceEdge(POINTS, counts=edge_counts, batching=Batching(4, 0.0)) as edge:
        with InferenceDevice(POINTS, [edge.address], counts=device_counts) as device:
            for _ in range(3):
                device.infer(batch(rows=2), point="stage1")
            device.infer(batch(), point="output")
            device.infer(batch(), deadline=0.0)
            assert value(registry, "fsl_serving_streams") == 1
            figures, asked = edge.figures, device.figures
        with channel_to(edge) as channel, Asker(channel, POINTS) as stranger:
            stranger.say(stranger.knock(model="x"))
            stranger.refusal()
    assert figures.outcomes == {"answered": 3}
    assert (figures.batches, figures.rows) == (3, 6)
    assert value(registry, "fsl_serving_questions_total", outcome="answered") == 3
    assert value(registry, "fsl_serving_batch_rows_sum") == 6
    assert value(registry, "fsl_serving_queue_seconds_count") == 3
    assert value(registry, "fsl_serving_compute_seconds_sum") == figures.busy_seconds
    assert value(registry, "fsl_serving_up_bytes_total") >= asked.up_bytes > 3 * 2 * 128 * 4
    assert value(registry, "fsl_serving_down_bytes_total") >= asked.down_bytes > 3 * 2 * 10 * 4
    assert value(registry, "fsl_serving_waiting_rows") == 0
    assert value(registry, "fsl_serving_streams_refused_total", code="FAILED_PRECONDITION") == 1
    assert asked.answers == {"edge": 3, "device": 2}
    assert asked.fallbacks == {"late": 1}
    assert value(registry, "fsl_asking_answers_total", where="edge") == 3
    assert value(registry, "fsl_asking_fallbacks_total", reason="late") == 1
    assert value(registry, "fsl_asking_up_bytes_total") == asked.up_bytes
    assert value(registry, "fsl_asking_streams_total") == 1


def value(registry, name, **labels):
    return registry.get_sample_value(name, labels)


def test_metrics_are_served_without_a_folder_to_write_into():
    registry = CollectorRegistry()
    PrometheusEdgeCounts(registry)
    endpoint = MetricsEndpoint("metrics", "127.0.0.1:0", registry, "serving-edge")
    try:
        with urllib.request.urlopen(f"http://{endpoint.address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert "fsl_serving_waiting_rows 0.0" in text
        assert "fsl_healthy 1.0" in text
        assert "fsl_disk_free_bytes" not in text
        with urllib.request.urlopen(f"http://{endpoint.address}/health", timeout=10) as answer:
            assert b'"status": "ok"' in answer.read()
    finally:
        endpoint.close()
