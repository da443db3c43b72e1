"""A federation in one process whose devices and edges speak over gRPC on loopback: each node is a thread."""

import json
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import ConfigRecord, Error, Message, RecordDict
from torch import nn

import fsl
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.deployment.node.networked_node import NetworkedNode
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.own_ledger import Limit
from fsl.errors import FslError
from fsl.flower.internals import SimulationGrid
from fsl.messages.node_part import NodePart
from fsl.messages.record_names import ARRAYS, CONFIG, METRICS, PART, PLAN, REMARKS
from fsl.messages.round_plan import EvaluatePlan, RoundPlan
from fsl.wire.options import Patience


def answered(kind, content, node) -> RecordDict:
    """A node's answer to a message."""
    config = content.config_records[CONFIG]
    if kind == "query":
        return RecordDict({CONFIG: ConfigRecord({"member": json.dumps(node.describe())})})
    if kind == "train":
        plan, part = RoundPlan.from_json(config[PLAN]), NodePart.from_json(config[PART])
        work = node.train(plan, part, content.array_records[ARRAYS])
        arrays, metrics = work.records()
        return RecordDict({ARRAYS: arrays, METRICS: metrics, REMARKS: work.remarks()})
    plan, part = EvaluatePlan.from_json(config[PLAN]), config.get(PART)
    part = NodePart.from_json(part) if part else None
    return RecordDict({METRICS: node.evaluate(plan, content.array_records[ARRAYS], part)})


class WiredGrid(SimulationGrid):
    """Nodes 1..E host an edge each, the next E the servers above them, if any, the others so many devices each."""

    def __init__(self, workload, backend, devices):
        groups = [range(devices)[i :: backend.device_nodes] for i in range(backend.device_nodes)]
        hops = workload.places is not None and "cloud" in workload.places
        tops = range(backend.edges) if hops and backend.tops is None else backend.tops or ()
        super().__init__(len(tops) + (backend.edges if backend.both else backend.edges + len(groups)))
        folder = backend.folder
        self.nodes = {}
        key = folder / "device.key"
        folder.mkdir(parents=True, exist_ok=True)
        if not key.exists():
            pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            key.write_bytes(pem)
            key.chmod(0o600)
        common = {"state": str(folder), "key": str(key), **({} if backend.edge_tls else {"insecure": True})}
        for edge in range(backend.edges):
            config = {"role": "edge", "edge": edge, "listen": "127.0.0.1:0", **common, **backend.edge_tls}
            config |= backend.edge_more
            if backend.both:
                config |= {"role": "both", "devices": ",".join(map(str, groups[edge]))}
            self._host(workload, backend, config, folder / f"edge-{edge}")
        for edge in tops:
            config = {"role": "top", "edge": edge, "listen": "127.0.0.1:0", **common, **backend.edge_tls}
            config |= backend.top_more
            del config["key"]
            self._host(workload, backend, config, folder / f"top-{edge}")
        for group in [] if backend.both else groups:
            config = {"role": "device", "devices": ",".join(map(str, group)), **common, **backend.device_tls}
            config |= backend.device_more
            self._host(workload, backend, config, folder / f"devices-{group[0]}")

    def _host(self, workload, backend, config, store):
        settings = replace(NodeSettings.read(config), state=store, limit=backend.limit)
        workload = workload if backend.model is None else replace(workload, model=backend.model)
        node = NetworkedNode(replace(workload, store=store), settings, backend.patience, self._meters(settings))
        self.nodes[len(self.nodes) + 1] = node

    def _meters(self, settings):
        return None  # they count nothing

    def answer(self, messages, timeout):
        replies = [None] * len(messages)

        def work(i, message):
            try:
                replies[i] = self._reply(message, self.nodes[message.metadata.dst_node_id])
            except FslError as error:
                replies[i] = Message(Error(0, str(error)), reply_to=message)

        threads = [threading.Thread(target=work, args=(i, m)) for i, m in enumerate(messages)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return replies

    def _reply(self, message, node):
        return Message(answered(message.metadata.message_type, message.content, node), reply_to=message)

    def release(self):
        for node in self.nodes.values():
            node.close()


@dataclass(frozen=True)
class Wired(fsl.Backend):
    """A backend whose nodes speak over gRPC."""

    folder: Path = Path()
    edges: int = 2
    device_nodes: int = 2
    both: bool = False  # edges host the devices, too
    edge_tls: dict[str, str] = field(default_factory=dict)  # without any: no TLS
    device_tls: dict[str, str] = field(default_factory=dict)
    edge_more: dict[str, str] = field(default_factory=dict)
    device_more: dict[str, str] = field(default_factory=dict)
    tops: tuple[int, ...] | None = (
        None  # the edges that have a server above them; None: all, where the split has two hops
    )
    top_more: dict[str, str] = field(default_factory=dict)
    limit: Limit | None = None
    model: nn.Module | None = None  # that nodes build, where it is not the run's own
    patience: Patience = field(default_factory=lambda: Patience(join=20, straggler=20, answer=40))
    roster: Roster = field(default_factory=lambda: Roster("", Terms(wait=5, bind_keys=False)))

    @property
    def placement(self):
        return self.roster

    def open(self, workload, nodes):
        return WiredGrid(workload, self, workload.partition.devices)
