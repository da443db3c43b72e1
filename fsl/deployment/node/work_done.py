"""What a node did in a round, on its way to the cloud."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, MetricRecord

from fsl.flower.records import reports_to_metrics, totals_to_record
from fsl.messages.reports import DeviceReport
from fsl.segments.sums import Total, WeightedSum

RESTARTED = "restarted."  # before a device's number, in what is said of a round


@dataclass
class Work:
    """What a node did in a round."""

    totals: dict[str, Total] = field(default_factory=dict)
    reports: list[DeviceReport] = field(default_factory=list)  # of devices that trained here
    served: list[DeviceReport] = field(default_factory=list)  # of devices that this node's edge served
    figures: dict[str, int] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    restarted: dict[int, int] = field(default_factory=dict)  # devices by the round of the front that they went on from

    def lose(self, reasons: Mapping[int, str]) -> None:
        """Devices did not finish here; on a node that is both, either end may say why."""
        for device, reason in reasons.items():
            self.lost[device] = f"{self.lost[device]}; {reason}" if device in self.lost else reason

    def records(self) -> tuple[ArrayRecord, MetricRecord]:
        """The totals, and all that is said beside them but why devices were lost."""
        weights = {name: total.weight for name, total in self.totals.items() if isinstance(total, WeightedSum)}
        metrics = reports_to_metrics(self.reports, weights, self.figures)
        served = reports_to_metrics(self.served, {}, {})
        metrics.update({f"served.{name}": column for name, column in served.items()})
        metrics.update({f"{RESTARTED}{device}": round for device, round in self.restarted.items()})
        return totals_to_record(self.totals), metrics


def restarted(restarts: Mapping[str, int]) -> dict[int, int]:
    """The devices whose front or head was lost, by the round of what they went on from; 0 where they begin anew."""
    found: dict[int, int] = {}
    for owner, round in restarts.items():
        kind, _, number = owner.partition("/")
        if kind in ("fronts", "heads"):
            found[int(number)] = min(round, found.get(int(number), round))
    return found
