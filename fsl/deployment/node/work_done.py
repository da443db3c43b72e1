"""Collects a node's work in a round, and packs it for the cloud."""

import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fsl.flower.records import reports_to_metrics, totals_to_record
from fsl.messages.record_names import ARRIVALS, LOST
from fsl.messages.reports import DeviceReport
from fsl.round.deadline import Deadline
from fsl.segments.sums import Total, WeightedSum, merge_totals

RESTARTED = "restarted."  # prefixes a device's number in a reply's metrics


@dataclass
class Work:
    """A node's work in one round: totals, reports, counts, and devices that it lost."""

    totals: dict[str, Total] = field(default_factory=dict)
    reports: list[DeviceReport] = field(default_factory=list)  # devices that trained here
    served: list[DeviceReport] = field(default_factory=list)  # devices that this node's edge served
    topped: list[DeviceReport] = field(default_factory=list)  # devices that its server above an edge served
    counts: dict[str, int] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    restarted: dict[int, int] = field(default_factory=dict)  # by device, the round of the front that it went on from
    scores: dict[str, float] = field(default_factory=dict)  # of a model whose parties are scored together, by column
    arrived: tuple[int, ...] = ()  # at this node's edge: uploads and fronts in order, where it takes them as they come

    _given_up: str = ""
    _deadlines: list[Deadline] = field(default_factory=list)
    _wakes: list[Callable[[], None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def deadline(self, seconds: float | None, grace: float = 0.0, wake: Callable[[], None] | None = None) -> Deadline:
        """Returns a deadline for a part of the round (None: no such limit), which ends when the round is given up.

        `wake`: called then, where whoever keeps the deadline may be waiting for something else.
        """
        deadline = Deadline(math.inf if seconds is None else seconds, grace)
        with self._lock:
            self._deadlines.append(deadline)
            if wake is not None:
                self._wakes.append(wake)
            if self._given_up:
                deadline.end(self._given_up)
        return deadline

    def give_up(self, reason: str) -> None:
        """End the round now, from any thread: all its devices are lost."""
        with self._lock:
            self._given_up = reason
            for deadline in self._deadlines:
                deadline.end(reason)
            for wake in self._wakes:
                wake()

    def add(self, totals: Mapping[str, Total]) -> None:
        """Add what one part of the round trained; from any thread."""
        with self._lock:
            merge_totals(self.totals, totals)

    def lose(self, reasons: Mapping[int, str]) -> None:
        """Note devices that did not finish here, and why; on a node with both ends, either may say so."""
        for device, reason in reasons.items():
            self.lost[device] = f"{self.lost[device]}; {reason}" if device in self.lost else reason

    def remarks(self) -> ConfigRecord:
        """Returns why devices were lost, and in which order uploads came where that says what was learnt."""
        arrived = {ARRIVALS: json.dumps(list(self.arrived))} if self.arrived else {}
        return ConfigRecord({LOST: json.dumps(self.lost), **arrived})

    def scored(self) -> dict[str, int | float | list[int] | list[float]]:
        """Returns the scores as a node tells those of one device; none where others have them."""
        if not self.scores:
            return {"device": [], "loss": [], "accuracy": []}
        return {"device": [0], "accuracy": [], **{name: [value] for name, value in self.scores.items()}}

    def records(self) -> tuple[ArrayRecord, MetricRecord]:
        """Returns the totals, and the metrics beside them; not why devices were lost."""
        weights = {name: total.weight for name, total in self.totals.items() if isinstance(total, WeightedSum)}
        metrics = reports_to_metrics(self.reports, weights, self.counts)
        served = reports_to_metrics(self.served, {}, {})
        metrics.update({f"served.{name}": column for name, column in served.items()})
        topped = reports_to_metrics(self.topped, {}, {}) if self.topped else {}
        metrics.update({f"topped.{name}": column for name, column in topped.items()})
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
