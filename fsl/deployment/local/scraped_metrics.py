"""Reads the metrics of clouds, edges and devices from the text that they serve to Prometheus."""

import re
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from urllib.parse import urlsplit

from fsl.errors import ConfigError
from fsl.quoting import one_line

_TIMEOUT = 3.0  # seconds
_LONGEST = 4 << 20  # bytes of an answer
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    """One sample of a metric."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Told:
    """What one endpoint told: metrics by name, samples of one name added up, and the labels of those that inform."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    role: str = ""  # "cloud", or a node's; empty where no fsl answered
    run: str = ""  # Flower's id of a cloud's run


def metrics_url(text: str) -> str:
    """Returns the URL of an endpoint's metrics, given as host:port or as a URL; ConfigError for anything else."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"--metrics {text}: it is host:port or a URL, as in http://edge0.example.org:9109/metrics")
    return url if parts.path not in ("", "/") else f"{url.rstrip('/')}/metrics"


def scrape(address: str) -> Told | None:
    """Ask an endpoint, named by host:port or by its URL; None where nobody answers."""
    try:
        with urllib.request.urlopen(metrics_url(address), timeout=_TIMEOUT) as answer:
            samples = list(parse_samples(answer.read(_LONGEST).decode(errors="replace")))
    except (OSError, ValueError, HTTPException):
        return None
    named = {sample.name: sample.labels for sample in samples}
    role, run = named.get("fsl_info", {}).get("role", ""), named.get("fsl_cloud_run_info", {}).get("run", "")
    return Told(added_up(samples), one_line(role, 40), one_line(run, 40))


def scrape_metrics(address: str) -> dict[str, float]:
    """Read the metrics at an address by name; empty where nobody answers."""
    told = scrape(address)
    return {} if told is None else dict(told.metrics)


def parse_metrics(text: str) -> dict[str, float]:
    """Parse Prometheus' text format; adds up samples of one name whatever their labels, and skips invalid lines."""
    return added_up(parse_samples(text))


def parse_samples(text: str) -> Iterator[Sample]:
    """Parse Prometheus' text format sample by sample; skips invalid lines, and when counters began."""
    for line in text.splitlines():
        head, braced, rest = line.partition("{")
        labels, _, numbers = rest.rpartition("}") if braced else ("", "", line.partition(" ")[2])
        name = head.strip() if braced else line.partition(" ")[0]
        if line.startswith("#") or name.endswith("_created"):
            continue
        try:
            yield Sample(name, dict(_LABEL.findall(labels)), float(numbers.split()[0]))
        except (ValueError, IndexError):
            continue


def added_up(samples: Iterable[Sample]) -> dict[str, float]:
    """Add up samples of one name, whatever their labels."""
    metrics: dict[str, float] = {}
    for sample in samples:
        metrics[sample.name] = metrics.get(sample.name, 0.0) + sample.value
    return metrics
