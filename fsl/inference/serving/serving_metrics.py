"""Counts what a serving edge and its devices do for Prometheus, beside the figures that they always keep."""

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fsl.deployment.metrics_endpoint import STEP_SECONDS
from fsl.inference.serving.answer import AnswerSeconds, Where
from fsl.inference.serving.device_counts import DeviceCounts
from fsl.inference.serving.edge_counts import EdgeCounts, Outcome

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # buckets


class PrometheusEdgeCounts(EdgeCounts):
    """Counts one edge's questions; takes some microseconds each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._ended = Counter(
            "fsl_serving_questions", "Questions that got this answer.", ["outcome"], registry=registry
        )
        self._queued = Histogram(
            "fsl_serving_queue_seconds",
            "From the arrival of a question until the model began with it.",
            buckets=STEP_SECONDS,
            registry=registry,
        )
        self._computed = Histogram(
            "fsl_serving_compute_seconds",
            "Of a batch in the model.",
            buckets=STEP_SECONDS,
            registry=registry,
        )
        self._batch = Histogram("fsl_serving_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=registry)
        self._waiting = Gauge("fsl_serving_waiting_rows", "Rows that wait for the model.", registry=registry)
        self._up_bytes = Counter("fsl_serving_up_bytes", "Bytes that came, headers included.", registry=registry)
        self._down_bytes = Counter("fsl_serving_down_bytes", "Bytes that were sent.", registry=registry)
        self._open = Gauge("fsl_serving_streams", "Devices that have a stream.", registry=registry)
        self._away = Counter(
            "fsl_serving_streams_refused",
            "Streams that were turned away or ended, by gRPC status code.",
            ["code"],
            registry=registry,
        )

    def watch(self, waiting: Callable[[], int]) -> None:
        """Report the waiting rows, read when Prometheus asks."""
        self._waiting.set_function(waiting)

    def ended(self, outcome: Outcome, questions: int = 1) -> None:
        """Count questions that got this answer."""
        super().ended(outcome, questions)
        self._ended.labels(outcome).inc(questions)

    def computed(self, rows: int, seconds: float, waits: Sequence[float]) -> None:
        """Count a batch, and how long each of its questions waited."""
        super().computed(rows, seconds, waits)
        self._computed.observe(seconds)
        self._batch.observe(rows)
        for wait in waits:
            self._queued.observe(wait)

    def came(self, size: int) -> None:
        """Count bytes that came."""
        super().came(size)
        self._up_bytes.inc(size)

    def sent(self, size: int) -> None:
        """Count bytes that were sent."""
        super().sent(size)
        self._down_bytes.inc(size)

    def opened(self) -> None:
        """Count a stream that is open."""
        super().opened()
        self._open.inc()

    def closed(self) -> None:
        """Count a stream that has ended."""
        super().closed()
        self._open.dec()

    def refused(self, code: str) -> None:
        """Count a stream that was turned away."""
        super().refused(code)
        self._away.labels(code).inc()


class PrometheusDeviceCounts(DeviceCounts):
    """Counts one device's questions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._given = Counter(
            "fsl_asking_answers", "Answers, by where the rest of the model was computed.", ["where"], registry=registry
        )
        self._took = Histogram(
            "fsl_asking_answer_seconds",
            "From a question until its answer.",
            ["where"],
            buckets=STEP_SECONDS,
            registry=registry,
        )
        self._fell = Counter(
            "fsl_asking_fallbacks",
            "Answers that the device computed in an edge's place.",
            ["reason"],
            registry=registry,
        )
        self._exited = Counter("fsl_asking_exits", "Rows, by the exit by which they left.", ["exit"], registry=registry)
        self._none = Counter("fsl_asking_unanswered", "Questions without an answer.", registry=registry)
        self._repeated = Counter("fsl_asking_asked_again", "Questions that went to another edge.", registry=registry)
        self._opened = Counter("fsl_asking_streams", "Streams that were opened.", registry=registry)
        self._lost = Counter("fsl_asking_streams_broken", "Streams that broke.", registry=registry)
        self._up_bytes = Counter("fsl_asking_up_bytes", "Bytes of answered questions.", registry=registry)
        self._down_bytes = Counter("fsl_asking_down_bytes", "Bytes of their answers.", registry=registry)

    def answered(self, where: Where, seconds: AnswerSeconds, fallback: str = "") -> None:
        """Count an answer."""
        super().answered(where, seconds, fallback)
        self._given.labels(where).inc()
        self._took.labels(where).observe(seconds.total)
        if fallback:
            self._fell.labels(fallback).inc()

    def exited(self, rows: Mapping[str, int]) -> None:
        """Count the rows of an answer by their exits."""
        super().exited(rows)
        for name, count in rows.items():
            self._exited.labels(name).inc(count)

    def unanswered(self) -> None:
        """Count a question without an answer."""
        super().unanswered()
        self._none.inc()

    def asked_again(self) -> None:
        """Count a question that went to another edge."""
        super().asked_again()
        self._repeated.inc()

    def opened(self) -> None:
        """Count a stream that was opened."""
        super().opened()
        self._opened.inc()

    def broke(self) -> None:
        """Count a stream that broke."""
        super().broke()
        self._lost.inc()

    def crossed(self, up_bytes: int, down_bytes: int) -> None:
        """Count the bytes of a question and of its answer."""
        super().crossed(up_bytes, down_bytes)
        self._up_bytes.inc(up_bytes)
        self._down_bytes.inc(down_bytes)
