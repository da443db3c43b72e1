"""Reads an edge's metrics from the text that it serves to Prometheus."""

import urllib.request

_TIMEOUT = 2.0  # seconds


def scrape_metrics(address: str) -> dict[str, float]:
    """Read the metrics at http://<address>/metrics by name; empty where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=_TIMEOUT) as answer:
            return parse_metrics(answer.read().decode(errors="replace"))
    except (OSError, ValueError):
        return {}


def parse_metrics(text: str) -> dict[str, float]:
    """Parse Prometheus' text format; adds up samples of one name whatever their labels, and skips invalid lines."""
    metrics: dict[str, float] = {}
    for line in text.splitlines():
        head, _, rest = line.partition("{")
        words = line.split() if not rest else [head.strip(), *rest.rpartition("}")[2].split()]
        if line.startswith("#") or len(words) < 2 or words[0].endswith("_created"):  # a counter's beginning
            continue
        try:
            metrics[words[0]] = metrics.get(words[0], 0.0) + float(words[1])
        except ValueError:
            continue
    return metrics
