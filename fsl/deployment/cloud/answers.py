"""Checks that a node's answer holds only the work of its own devices, and of those that its edge served.

An enrolled node could otherwise answer for another node's device, and replace its front, loss or counts.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fsl.errors import TrustError, WireError
from fsl.flower.records import NodeReport, metrics_to_reports
from fsl.messages.identifiers import is_owner
from fsl.messages.node_part import NodePart
from fsl.messages.record_names import ARRAYS, ARRIVALS, METRICS, REMARKS
from fsl.split.pieces import number_of_middle
from fsl.split.placing import TOP

_NO_SCORES = "its answer has no scores by device; cloud and node must run the same version of fsl"
SERVED = "served."  # prefixes the columns of an edge's reports on the devices that it served
TOPPED = "topped."  # prefixes those of the server above an edge


@dataclass(frozen=True)
class Share:
    """A node's share of a round: `own` devices train there, `served` ones may have sessions at its edge.

    `topped`: devices that may have sessions at its server above an edge.
    `cuts`: at which of the run's cuts devices are cut, where that is not the first.
    """

    own: frozenset[int]
    served: frozenset[int]
    edge: bool
    cuts: Mapping[int, int] = field(default_factory=dict)
    topped: frozenset[int] = frozenset()

    @staticmethod
    def of(part: NodePart) -> "Share":
        """Returns the share of a round that a node's part gives it."""
        served = {task.device for edge in part.edges for task in edge.cohort.devices}
        served |= {visitor.task.device for edge in part.edges for visitor in edge.visitors}
        served |= {task.device for task in part.alone}  # without an edge their node reports both ends
        tasks = [*part.own, *(task for edge in part.edges for task in edge.cohort.devices)]
        cuts = {task.device: task.cut for task in tasks if task.cut}
        topped = frozenset(task.device for top in part.tops for task in top.cohort.devices)
        own = frozenset(task.device for task in part.own)
        return Share(own, frozenset(served), bool(part.edges), cuts, topped | {task.device for task in part.alone})

    def may_tell(self, segment: str, device: int) -> bool:
        """Whether the node trains this segment of a device: it is its own device's, or its server's."""
        if segment == TOP:
            return device in self.topped
        number = number_of_middle(segment)
        at_edge = segment == "back" if number is None else self.cuts.get(device, 0) < number
        return device in (self.served if at_edge else self.own)


def check_answer(share: Share, content: RecordDict) -> tuple[ArrayRecord, MetricRecord]:
    """Returns a node's arrays and metrics; TrustError for the work of others, WireError for an invalid answer."""
    arrays, metrics = content.array_records.get(ARRAYS), content.metric_records.get(METRICS)
    if arrays is None or metrics is None:
        raise WireError("its answer has no arrays, or no metrics; cloud and node must run the same version of fsl")
    said = reports_in(metrics)
    _refuse((report.device for report in said.devices), share.own, "trained")
    _refuse((report.device for report in reports_in(metrics, SERVED).devices), share.served, "served")
    _refuse((report.device for report in reports_in(metrics, TOPPED).devices), share.topped, "trained a top of")
    for name in arrays:
        device, colon, key = name.partition(":")
        segment = key.partition(".")[0]
        if colon and device.isdecimal():
            known = is_owner(f"device-{device}")
            if not known or not share.may_tell(segment, int(device)):
                _refuse([int(device) if known else device[:20]], frozenset(), f"tells a {segment} of")
    summed = {"back": share.edge, TOP: bool(share.topped - share.own)}
    if sums := sorted(name for name in said.weights if not summed.get(name)):
        raise TrustError(f"it tells a sum of {sums[0]}s, which it was not asked for; its whole answer is left out")
    return arrays, metrics


def reports_in(metrics: MetricRecord, prefix: str = "") -> NodeReport:
    """Returns the reports in a node's metrics: on its own devices, or those with one of the prefixes.

    WireError where they are none.
    """
    if prefix == TOPPED and not any(name.startswith(TOPPED) for name in metrics):
        return NodeReport([], {}, {})  # most nodes are above no edge
    others = tuple({SERVED, TOPPED} - {prefix})
    mine = {n.removeprefix(prefix): v for n, v in metrics.items() if n.startswith(prefix) and not n.startswith(others)}
    return metrics_to_reports(MetricRecord(mine))


def check_arrivals(share: Share, content: RecordDict) -> tuple[int, ...]:
    """Returns the order in which uploads and fronts came to a node's edge, which merges those fronts.

    WireError where it is not an order of its devices' uploads, with each device's front once that its edge served.
    """
    if not share.edge:
        return ()
    try:
        order = json.loads(str(content.config_records[REMARKS].get(ARRIVALS, "[]")))
        fronts = sorted(-1 - event for event in order if event < 0)
        whose = {event if event >= 0 else -1 - event for event in order if type(event) is int}
    except (KeyError, ValueError, TypeError, RecursionError):
        raise WireError("its answer has no order in which uploads came; it must run the same version of fsl") from None
    served: Any = content.metric_records[METRICS].get(f"{SERVED}device", [])
    if fronts != sorted(served) or not whose <= share.served or not all(type(event) is int for event in order):
        raise WireError("the order in which uploads came, as it tells it, is not one of its devices")
    return tuple(order)


def check_scores(asked: frozenset[int], content: RecordDict) -> None:
    """Raise TrustError for scores of devices that the cloud did not ask for, WireError for invalid scores."""
    metrics = content.metric_records.get(METRICS)
    if metrics is None:
        raise WireError("its answer has no metrics; cloud and node must run the same version of fsl")
    columns = dict(metrics)
    devices = columns.pop("device", None)
    scored = [prefix for prefix in ("", "own_") if f"{prefix}loss" in columns]
    if not isinstance(devices, list) or not scored or any(f"{prefix}accuracy" not in columns for prefix in scored):
        raise WireError(_NO_SCORES)
    for name, column in columns.items():
        # An objective without accuracy has no numbers of it.
        lengths = (0, len(devices)) if name.endswith("accuracy") else (len(devices),)
        if not isinstance(column, list) or len(column) not in lengths:
            raise WireError(_NO_SCORES)
    _refuse(devices, asked, "scored")


def _refuse(devices: Iterable[object], allowed: frozenset[int], what: str) -> None:
    if foreign := sorted({device for device in devices if device not in allowed}, key=str):
        raise TrustError(f"it {what} device {foreign[0]}, which is not its own; its whole answer is left out")
