"""Serves the metrics of a run's cloud to Prometheus, from before its first round until it ends."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fsl.deployment.metrics_endpoint import ROUND_SECONDS, MetricsEndpoint
from fsl.privacy.claims import ADVERSARIES
from fsl.privacy.ledger import epsilon_metric
from fsl.run.observers import Observer, RunInfo

# By metric, the data that it is measured on, and the key of a round's row that has it.
_SCORES = {
    "loss": {"train": "train_loss", "test": "loss", "validation": "validation_loss"},
    "accuracy": {"test": "accuracy", "validation": "validation_accuracy"},
}


class CloudMetrics(Observer):
    """Counts a run's rounds, devices and bytes; ConfigError where it cannot listen at `address` (host:port).

    `run` is Flower's id. `nodes` returns how many nodes take part, and how many of these have a line to this cloud. The
    cloud writes into `folder`.
    """

    def __init__(self, address: str, run: str, folder: Path, nodes: Callable[[], tuple[int, int]]) -> None:
        self.registry = registry = CollectorRegistry()
        self._run = run
        self._done, self._planned = 0, 0
        self._endpoint = MetricsEndpoint(
            "deployment.metrics", address, registry, "cloud", "hydra.run.dir", folder, self._about
        )
        labels = ["run", "strategy", "model", "data"]
        self._info = Gauge("fsl_cloud_run_info", "The run at work; always 1.", labels, registry=registry)
        self._round = Gauge("fsl_cloud_round", "Number of the last round that ended.", registry=registry)
        self._rounds = Gauge("fsl_cloud_rounds", "Rounds that the run is to have.", registry=registry)
        self._ended = Gauge(
            "fsl_cloud_last_round_timestamp_seconds",
            "When the last round ended (Unix time); before the first: when the cloud began.",
            registry=registry,
        )
        self._ended.set(time.time())
        self._last_seconds = Gauge("fsl_cloud_last_round_seconds", "Seconds of the last round.", registry=registry)
        self._seconds = Histogram(
            "fsl_cloud_round_seconds", "Seconds of a round.", buckets=ROUND_SECONDS, registry=registry
        )
        self._finished = Counter("fsl_cloud_devices_finished", "Devices that finished a round.", registry=registry)
        self._lost = Counter("fsl_cloud_devices_lost", "Devices that a round went on without.", registry=registry)
        self._last_finished = Gauge(
            "fsl_cloud_last_round_devices_finished", "Devices that finished the last round.", registry=registry
        )
        self._last_lost = Gauge(
            "fsl_cloud_last_round_devices_lost", "Devices that the last round went on without.", registry=registry
        )
        online = Gauge("fsl_cloud_nodes_online", "Nodes that take part in the run.", registry=registry)
        online.set_function(lambda: nodes()[0])
        lined = Gauge("fsl_cloud_nodes_with_line", "Of these, nodes with a line to the cloud.", registry=registry)
        lined.set_function(lambda: nodes()[1])
        said = {"up": "Bytes of devices' uploads.", "down": "Bytes of edges' replies.", "model": "Bytes of models."}
        self._bytes = {
            f"{what}_bytes": Counter(f"fsl_cloud_{what}_bytes", text, registry=registry) for what, text in said.items()
        }
        self._scores = {
            name: Gauge(f"fsl_cloud_{name}", f"The last {name} that was measured.", ["data"], registry=registry)
            for name in _SCORES
        }
        self._epsilon = Gauge(
            "fsl_cloud_epsilon", "Epsilon spent by the cloud's ledger.", ["against"], registry=registry
        )

    @property
    def address(self) -> str:
        """host:port at which it is served."""
        return self._endpoint.address

    def on_start(self, info: RunInfo) -> None:
        """Tell what runs."""
        self._info.labels(self._run, info.strategy, info.model, info.data).set(1)
        self._done, self._planned = info.first_round - 1, info.rounds
        self._round.set(self._done)
        self._rounds.set(self._planned)
        self._ended.set(time.time())

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Count a round that ended, by its row of metrics.jsonl."""
        finished, lost = row.get("devices") or 0, len(row.get("lost") or ())
        self._done = row["round"]
        self._round.set(self._done)
        self._ended.set(time.time())
        self._last_seconds.set(row["seconds"])
        self._seconds.observe(row["seconds"])
        self._finished.inc(finished)
        self._lost.inc(lost)
        self._last_finished.set(finished)
        self._last_lost.set(lost)
        for name, counter in self._bytes.items():
            counter.inc(row.get(name) or 0)
        for name, columns in _SCORES.items():
            for data, column in columns.items():
                if row.get(column) is not None:
                    self._scores[name].labels(data).set(row[column])
        for adversary in ADVERSARIES:
            if (name := epsilon_metric(adversary)) in row:  # None: unbounded
                self._epsilon.labels(adversary).set(float("inf") if row[name] is None else row[name])

    def close(self) -> None:
        """End the endpoint."""
        self._endpoint.close()

    def _about(self) -> dict[str, Any]:
        return {"run": self._run, "round": self._done, "rounds": self._planned}
