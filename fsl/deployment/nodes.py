"""What a node answers to Flower's messages."""

import json
import logging
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fsl.app import ARRAYS, CONFIG, METRICS, PART, PLAN, REMARKS, SETUP
from fsl.deployment.settings import NodeSettings
from fsl.deployment.setup import Setup, build_workload
from fsl.deployment.wired import WiredNode
from fsl.errors import WireError
from fsl.parts import Part
from fsl.plan import EvaluatePlan, RoundPlan
from fsl.wire.options import Patience

log = logging.getLogger(__name__)


class NodeHost:
    """Builds a run's node at its first message, and keeps it for the process's life."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int, str], WiredNode] = {}

    def query(self, message: Message, context: Context) -> Message:
        """What this node hosts."""
        member = json.dumps(self._node(message, context).describe())
        return Message(RecordDict({CONFIG: ConfigRecord({"member": member})}), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        """This node's part of a round, or whole cohorts where it has no role."""
        node, plan = self._node(message, context), RoundPlan.from_json(_text(message, PLAN))
        arrays = message.content.array_records.get(ARRAYS, ArrayRecord())
        part = str(message.content.config_records[CONFIG].get(PART, ""))
        if not part:
            totals, metrics = node.node.train(plan, arrays)
            return Message(RecordDict({ARRAYS: totals, METRICS: metrics}), reply_to=message)
        work = node.train(plan, Part.from_json(part), arrays)
        totals, metrics = work.records()
        remarks = ConfigRecord({"lost": json.dumps(work.lost)})
        return Message(RecordDict({ARRAYS: totals, METRICS: metrics, REMARKS: remarks}), reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Private fronts on the test set, where they are."""
        plan = EvaluatePlan.from_json(_text(message, PLAN))
        arrays = message.content.array_records.get(ARRAYS, ArrayRecord())
        metrics = self._node(message, context).node.evaluate(plan, arrays)
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    def close(self) -> None:
        """End what the nodes hold."""
        for node in self._nodes.values():
            node.close()
        self._nodes.clear()

    def _node(self, message: Message, context: Context) -> WiredNode:
        text = _text(message, SETUP)
        key = (context.run_id, context.node_id, text)
        if key not in self._nodes:
            settings, setup = NodeSettings.read(context.node_config), Setup.from_json(text)
            patience = replace(Patience(), **setup.patience)
            self._nodes[key] = WiredNode(build_workload(setup, settings), settings, patience)
        return self._nodes[key]


def _text(message: Message, name: str) -> str:
    text = message.content.config_records.get(CONFIG, ConfigRecord()).get(name)
    if not isinstance(text, str) or not text:
        raise WireError(f"a message has no {name}; cloud and node must run the same version of fsl")
    return text
