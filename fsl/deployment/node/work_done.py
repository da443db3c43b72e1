"""Collects a node's work in a round, and packs it for the cloud."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, MetricRecord

from fsl.flower.records import reports_to_metrics, totals_to_record
from fsl.messages.reports import DeviceReport
from fsl.segments.sums import Total, WeightedSum

RESTARTED = "restarted."  # prefixes a device's number in a reply's metrics


@dataclass
class Work:
    """A node's work in one round: totals, reports, counts, and devices that it lost."""

    totals: dict[str, Total] = field(default_factory=dict)
    reports: list[DeviceReport] = field(default_factory=list)  # devices that trained here
    served: list[DeviceReport] = field(default_factory=list)  # devices that this node's edge served
    counts: dict[str, int] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    restarted: dict[int, int] = field(default_factory=dict)  # by device, the round of the front that it went on from

    def lose(self, reasons: Mapping[int, str]) -> None:
        """Note devices that did not finish here, and why; on a node with both ends, either may say so."""
        for device, reason in reasons.items():
            self.lost[device] = f"{self.lost[device]}; {reason}" if device in self.lost else reason

    def records(self) -> tuple[ArrayRecord, MetricRecord]:
        """Returns the totals, and the metrics beside them; not why devices were lost."""
        weights = {name: total.weight for name, total in self.totals.items() if isinstance(total, WeightedSum)}
        metrics = reports_to_metrics(self.reports, weights, self.counts)
        served = reports_to_metrics(self.served, {}, {})
        metrics.update({f"served.{name}": column for name, column in served.items()})
        metrics.update({f"{RESTARTED}{device}": round for device, round in self.restarted.items()})
        return totals_to_record(self.totals), metrics


def restarted(restarts: Mapping[str, int]) -> dict[int, int]:
    """Returns devices that lost their front or head, with the round of the one they went on from; 0: begun anew."""
    found: dict[int, int] = {}
    for owner, round in restarts.items():
        kind, _, number = owner.partition("/")
        if kind in ("fronts", "heads"):
            found[int(number)] = min(round, found.get(int(number), round))
    return found
