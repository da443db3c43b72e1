"""Checks that a node's answer holds only the work of its own devices, and of those that its edge served.

An enrolled node could otherwise answer for another node's device, and replace its front, loss or counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fsl.errors import TrustError, WireError
from fsl.flower.records import metrics_to_reports
from fsl.messages.identifiers import is_owner
from fsl.messages.node_part import NodePart
from fsl.messages.record_names import ARRAYS, METRICS
from fsl.privacy.leak_probe import LEAKS
from fsl.split.pieces import number_of_middle

_NO_SCORES = "its answer has no scores by device; cloud and node must run the same version of fsl"
SERVED = "served."  # prefixes the columns of an edge's reports on the devices that it served


@dataclass(frozen=True)
class Share:
    """A node's share of a round: `own` devices train there, `served` ones may have sessions at its edge.

    `cuts`: at which of the run's cuts devices are cut, where that is not the first.
    """

    own: frozenset[int]
    served: frozenset[int]
    edge: bool
    cuts: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def of(part: NodePart) -> "Share":
        """Returns the share of a round that a node's part gives it."""
        served = {task.device for edge in part.edges for task in edge.cohort.devices}
        served |= {visitor.task.device for edge in part.edges for visitor in edge.visitors}
        served |= {task.device for task in part.alone}  # without an edge their node reports both ends
        tasks = [*part.own, *(task for edge in part.edges for task in edge.cohort.devices)]
        cuts = {task.device: task.cut for task in tasks if task.cut}
        return Share(frozenset(task.device for task in part.own), frozenset(served), bool(part.edges), cuts)

    def may_tell(self, segment: str, device: int) -> bool:
        """Whether a segment that the node tells of a device is one that it trains: its own device's, or its edge's."""
        number = number_of_middle(segment)
        at_edge = segment == "back" if number is None else self.cuts.get(device, 0) < number
        return device in (self.served if at_edge else self.own)


def check_answer(share: Share, content: RecordDict) -> tuple[ArrayRecord, MetricRecord]:
    """Returns a node's arrays and metrics; TrustError for the work of others, WireError for an invalid answer."""
    arrays, metrics = content.array_records.get(ARRAYS), content.metric_records.get(METRICS)
    if arrays is None or metrics is None:
        raise WireError("its answer has no arrays, or no metrics; cloud and node must run the same version of fsl")
    own = MetricRecord({name: values for name, values in metrics.items() if not name.startswith(SERVED)})
    served = {name.removeprefix(SERVED): values for name, values in metrics.items() if name.startswith(SERVED)}
    said = metrics_to_reports(own)
    _refuse((report.device for report in said.devices), share.own, "trained")
    _refuse((report.device for report in metrics_to_reports(MetricRecord(served)).devices), share.served, "served")
    for name in arrays:
        device, colon, key = name.partition(":")
        segment = key.partition(".")[0]
        if colon and device.isdecimal():
            known = is_owner(f"device-{device}")
            if not known or not share.may_tell(segment, int(device)):
                _refuse([int(device) if known else device[:20]], frozenset(), f"tells a {segment} of")
    if sums := sorted(name for name in said.weights if name != "back" or not share.edge):
        raise TrustError(f"it tells a sum of {sums[0]}s, which it was not asked for; its whole answer is left out")
    return arrays, metrics


def check_scores(asked: frozenset[int], content: RecordDict) -> None:
    """Raise TrustError for scores of devices that the cloud did not ask for, WireError for invalid scores."""
    metrics = content.metric_records.get(METRICS)
    if metrics is None:
        raise WireError("its answer has no metrics; cloud and node must run the same version of fsl")
    leaked = [name for name in LEAKS if name in metrics]
    columns = [
        column for name in ("device", "loss", "accuracy", *leaked) if isinstance(column := metrics.get(name), list)
    ]
    if len(columns) != 3 + len(leaked):
        raise WireError(_NO_SCORES)
    devices, losses, accuracies = columns[:3]
    if len(devices) != len(losses) or len(accuracies) not in (0, len(devices)):
        raise WireError(_NO_SCORES)
    _refuse(devices, asked, "scored")


def _refuse(devices: Iterable[object], allowed: frozenset[int], what: str) -> None:
    if foreign := sorted({device for device in devices if device not in allowed}, key=str):
        raise TrustError(f"it {what} device {foreign[0]}, which is not its own; its whole answer is left out")
