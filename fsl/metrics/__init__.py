"""Metrics of an evaluation: by name, functions of (outputs, targets), and objects with update, compute and reset."""

from fsl.metrics.given_metrics import as_metrics, metrics_of
from fsl.metrics.metric_base import Metric, Scored
from fsl.metrics.metric_set import Metrics
from fsl.metrics.named_metrics import NAMES, metric_named

__all__ = ["NAMES", "Metric", "Metrics", "Scored", "as_metrics", "metric_named", "metrics_of"]
