"""`fsl-serve edge`: answers devices for the model of a finished run, until somebody ends it."""

import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from fsl.simulations.endings import tell
from fsl.simulations.serving.serve_options import ServeOptions
from fsl.simulations.serving.serve_tokens import certificates_of_edge, operator_keys
from fsl.simulations.serving.served_run import MODEL_OPTIONS, served_run

from fsl.deployment.extra_installed import needs_prometheus
from fsl.inference.serving import Batching, InferenceEdge
from fsl.inference.serving.edge_counts import EdgeCounts
from fsl.inference.serving.thread_turns import short_turns

EDGE_OPTIONS = (
    *MODEL_OPTIONS,
    *("address", "lean", "cert", "cert-key", "client-ca", "token-key", "insecure"),
    *("max-rows", "max-wait", "queue", "allow", "threads", "metrics"),
)
_LOOK = 0.5  # seconds between two looks for a signal


def serve_edge(arguments: Sequence[str]) -> None:
    """Serve until KeyboardInterrupt."""
    options = ServeOptions(arguments, EDGE_OPTIONS)
    certificates, keys = certificates_of_edge(options), operator_keys(options)
    batching = Batching(options.whole("max-rows", 1, 1) or 1, options.number("max-wait", 0.0, zero=True) or 0.0)
    torch.set_num_threads(options.whole("threads", 1, 1) or 1)
    with ExitStack() as stack:
        counts = _counts(options, stack)
        stack.enter_context(short_turns())
        _, points = served_run(options)
        edge = stack.enter_context(
            InferenceEdge(
                points,
                listen=options.text("address"),
                lean=None if (lean := options.text("lean", "auto")) == "none" else lean,
                certificates=certificates,
                token_keys=keys,
                batching=batching,
                queue=options.whole("queue", 1024, 1) or 1024,
                allowed=("fsl", "torch.optim", *options.texts("allow")),
                counts=counts,
            )
        )
        name, digest = type(points.model).__name__, points.digest()[:12]
        tell(f"serving {name} ({digest}) at {edge.address}, points {', '.join(points.names)}; Ctrl-C ends it")
        try:
            while True:
                time.sleep(_LOOK)
        finally:
            tell(_in_words(edge))


def _counts(options: ServeOptions, stack: ExitStack) -> EdgeCounts:
    if not options.has("metrics"):
        return EdgeCounts()
    address = options.text("metrics")
    with needs_prometheus(f"metrics={address}"):
        from prometheus_client import CollectorRegistry

        from fsl.deployment.metrics_endpoint import MetricsEndpoint
        from fsl.inference.serving.serving_metrics import PrometheusEdgeCounts
    registry = CollectorRegistry()
    counts = PrometheusEdgeCounts(registry)
    endpoint = MetricsEndpoint("metrics", address, registry, "serving-edge")
    stack.callback(endpoint.close)
    tell(f"metrics at http://{endpoint.address}/metrics")
    return counts


def _in_words(edge: InferenceEdge) -> str:
    figures = edge.figures
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(figures.outcomes.items())) or "none came"
    mean = figures.rows / figures.batches if figures.batches else 0.0
    return f"questions: {told}; {figures.batches} batches of {mean:.1f} rows in the mean"
