"""SuperNodes with keys that say what they host, and Flower's Grid as far as the cloud asks it who is there."""

import json
from types import SimpleNamespace

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

from fsl.installed import __version__
from fsl.messages.record_names import CONFIG, LINE, MEMBER
from fsl.messages.versions import PROTOCOL
from fsl.wire.line.offer import LineOffer
from fsl.wire.tokens import public_bytes
from tests.helpers.at_once import AnswersAtOnce
from tests.helpers.lined import LinedNode


class KeyedNode:
    """A SuperNode with a key, which says that it hosts these."""

    def __init__(self, number, devices=(), edge=None, label="", samples=10, top=None):
        self.number = number
        self.key = ec.generate_private_key(ec.SECP384R1()).public_key()
        self.devices = devices
        self.edge = edge
        self.top = top
        self.label = label or f"node-{number}"
        self.samples = samples
        self.opens = False  # whether it opens the lines that it is offered
        self.line: LinedNode | None = None
        self.asked = 0
        self.restarts = 0

    @property
    def der(self):
        return public_bytes(self.key)

    @property
    def ssh(self):
        return self.key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def describe(self):
        roles = {(True, False): "device", (False, True): "edge", (True, True): "both", (False, False): "top"}
        samples, served = {str(device): self.samples for device in self.devices}, (self.edge, self.top) != (None, None)
        said = {"role": roles[bool(self.devices), self.edge is not None], "samples": samples, "edge": self.edge}
        said |= {
            "top": self.top,
            "address": "a:1" if served else "",
            "line": False,
            "key": self.der.hex() if self.devices else "",
            "edge_key": "" if self.edge is None else "ab" * 32,
        }
        return said | {"protocol": PROTOCOL, "version": __version__}

    def answer(self, offer):
        """What it says to the cloud's question."""
        self.asked += 1
        if self.opens and offer:
            self.close()
            self.line = LinedNode(LineOffer.from_json(offer), node=self.number)
        return self.describe() | {"line": bool(self.opens and offer)}

    def close(self):
        if self.line is not None:
            self.line.close()


class KeyedCloud(AnswersAtOnce):
    """Flower's Grid, as far as the cloud asks it who is there."""

    def __init__(self, *nodes):
        self.nodes = list(nodes)
        self.asked = {}

    def get_node_ids(self):
        return [node.number for node in self.nodes]

    def get_nodes(self):
        pem = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return [
            SimpleNamespace(
                node_id=n.number, public_key=n.key.public_bytes(*pem), name=n.label, last_activated_at=str(n.restarts)
            )
            for n in self.nodes
        ]

    def send_and_receive(self, messages, timeout):
        """In the order in which answers come in: the last node first."""
        hosts = {node.number: node for node in self.nodes}
        for message in reversed(list(messages)):
            node = message.metadata.dst_node_id
            said = hosts[node].answer(message.content.config_records[CONFIG].get(LINE))
            self.asked[node] = message
            if said is GONE:
                yield _gone(message)
            elif said is not None:
                yield Message(RecordDict({CONFIG: ConfigRecord({MEMBER: json.dumps(said)})}), reply_to=message)

    def gone(self, node):
        """See that a node has gone, which has not answered."""
        self.replies.append(_gone(self.asked[node]))


GONE = object()  # Flower answers in a node's place


def _gone(message):
    """Flower's answer for a node that is gone, which is as of its own node."""
    said = SimpleNamespace(src_node_id=SUPERLINK_NODE_ID, reply_to_message_id=message.metadata.message_id)
    error = Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable")
    return SimpleNamespace(metadata=said, error=error, has_error=lambda: True)
