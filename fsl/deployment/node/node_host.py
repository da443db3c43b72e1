"""Answers the cloud's messages to a node."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fsl.deployment.extra_installed import needs_prometheus
from fsl.deployment.node.meters import Meters
from fsl.deployment.node.networked_node import NetworkedNode
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.old_runs import prune
from fsl.deployment.node.owner_allows import refuse_kind, refuse_no_part
from fsl.deployment.node.setup import Setup, build_workload
from fsl.errors import WireError
from fsl.messages.node_part import NodePart
from fsl.messages.record_names import ARRAYS, CONFIG, LINE, MEMBER, METRICS, PART, PLAN, REMARKS, SETUP
from fsl.messages.round_plan import EvaluatePlan, RoundPlan
from fsl.round.workload import Workload
from fsl.wire.line.line_meter import LineMeter
from fsl.wire.line.offer import LineOffer
from fsl.wire.options import Patience

if TYPE_CHECKING:
    from fsl.deployment.node.node_metrics import NodeMetrics

log = logging.getLogger(__name__)


class NodeHost:
    """Builds a run's node at its first message, and keeps it until another run's comes."""

    def __init__(self) -> None:
        self._nodes: dict[int, tuple[str, NetworkedNode]] = {}
        self._shared: tuple[str, Workload] | None = None  # shared by all nodes without a role
        self._metrics: dict[str, NodeMetrics] = {}  # by address; they outlive runs
        self.open_line: Callable[[int, LineOffer, LineMeter], None] | None = None  # where a process keeps lines

    def answer(self, kind: str, node: int, content: RecordDict, node_config: Mapping[str, Any]) -> RecordDict:
        """Answer a message ("query", "train" or "evaluate") for this node."""
        refuse_kind(kind)
        networked = self._node(node, content, node_config)
        offer = content.config_records.get(CONFIG, ConfigRecord()).get(LINE)
        arrays = content.array_records.get(ARRAYS, ArrayRecord())
        if kind == "query":
            said = networked.describe()
            if offer and self.open_line is not None and networked.settings.role != "any":
                self.open_line(node, LineOffer.from_json(str(offer)), networked.meters.line)
                said["line"] = True
            return RecordDict({CONFIG: ConfigRecord({MEMBER: json.dumps(said)})})
        text = str(content.config_records[CONFIG].get(PART, ""))
        part = NodePart.from_json(text) if text else None
        if kind == "evaluate":
            scores = networked.evaluate(EvaluatePlan.from_json(_text(content, PLAN)), arrays, part)
            return RecordDict({METRICS: scores})
        plan = RoundPlan.from_json(_text(content, PLAN))
        if part is None:
            refuse_no_part(networked.settings)
            return networked.node.train(plan, arrays)
        work = networked.train(plan, part, arrays)
        totals, metrics = work.records()
        return RecordDict({ARRAYS: totals, METRICS: metrics, REMARKS: work.remarks()})

    def give_up(self, reason: str) -> None:
        """Lose the devices of the round that a node works on; from any thread."""
        for _, networked in list(self._nodes.values()):
            networked.give_up(reason)

    def close(self) -> None:
        """Close all nodes."""
        for _, networked in self._nodes.values():
            networked.close()
        self._nodes.clear()
        for metrics in self._metrics.values():
            metrics.close()
        self._metrics.clear()

    def _node(self, node: int, content: RecordDict, node_config: Mapping[str, Any]) -> NetworkedNode:
        text = _text(content, SETUP)
        built = self._nodes.get(node)
        if built is None or built[0] != text:
            settings, setup = NodeSettings.read(node_config), Setup.from_json(text)
            if built is not None:
                del self._nodes[node]
                built[1].close()
            workload = self._workload(text, setup, settings)
            prune(workload.store.parent, setup.run, settings.keep)
            patience = replace(Patience(), **setup.patience)
            networked = NetworkedNode(workload, settings, patience, self._meters(settings))
            built = self._nodes[node] = (text, networked)
        return built[1]

    def _meters(self, settings: NodeSettings) -> Meters | None:
        """Returns what counts this node's work, served where its owner asks for it."""
        address = settings.metrics
        if address is None:
            return None
        if address not in self._metrics:
            with needs_prometheus(f"node configuration: metrics={address}"):
                from fsl.deployment.node.node_metrics import NodeMetrics
            self._metrics[address] = NodeMetrics(settings)
        return self._metrics[address].meters

    def _workload(self, text: str, setup: Setup, settings: NodeSettings) -> Workload:
        if settings.role != "any":
            return build_workload(setup, settings)
        if self._shared is None or self._shared[0] != text:
            self._shared = (text, build_workload(setup, settings))
        return self._shared[1]


def _text(content: RecordDict, name: str) -> str:
    text = content.config_records.get(CONFIG, ConfigRecord()).get(name)
    if not isinstance(text, str) or not text:
        raise WireError(f"a message has no {name}; cloud and node must run the same version of fsl")
    return text


@cache
def host() -> NodeHost:
    """Returns this process's own host, for nodes that Flower runs inside of it."""
    return NodeHost()
