"""A federation in one process whose rounds go over lines, and whose devices and edges speak over gRPC."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Message

from fsl.deployment.cloud.line_grid import LineGrid
from fsl.errors import FslError
from fsl.flower.serde import record_bytes, record_from_bytes
from fsl.messages.record_names import CONFIG, LINE, MEMBER
from fsl.wire.line.cloud_lines import CloudLines
from fsl.wire.line.line_options import LineTimes
from fsl.wire.line.node_line import NodeLine
from fsl.wire.line.offer import LineOffer
from fsl.wire.tokens import load_private_key
from tests.helpers.wired import Wired, WiredGrid, answered

TIMES = LineTimes(keepalive=2.0, lost=3.0, opening=5.0)


class LinedGrid(WiredGrid):
    """Answers questions, and opens the lines that come with them; over these it does all other work."""

    def __init__(self, workload, backend, devices):
        super().__init__(workload, backend, devices)
        self.open: dict[int, NodeLine] = {}
        self.gone: set[int] = set()  # nodes that the SuperLink does not have any more
        self.asked: list[tuple[int, str]] = []  # what came over Flower's messages
        self._key = load_private_key(backend.folder / "device.key").public_key()

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node not in self.gone]

    def get_nodes(self):
        pem = self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return [
            SimpleNamespace(node_id=node, public_key=pem, name=f"number-{node}", last_activated_at="")
            for node in self.get_node_ids()
        ]

    def _reply(self, message, node):
        number, kind = message.metadata.dst_node_id, message.metadata.message_type
        self.asked.append((number, kind))
        content = answered(kind, message.content, node)
        if offer := message.content.config_records[CONFIG].get(LINE):
            hear, over = partial(self._hear, node), partial(self._over, node)
            self.open[number] = NodeLine(number, LineOffer.from_json(str(offer)), hear, over, TIMES)
            config = content.config_records[CONFIG]
            config[MEMBER] = str(config[MEMBER]).replace('"line": false', '"line": true')
        return Message(content, reply_to=message)

    def _hear(self, node, line, work):
        def do():
            try:
                line.answer(work.id, record_bytes(answered(work.kind, record_from_bytes(work.content), node)))
            except FslError as error:
                line.answer(work.id, b"", str(error))

        threading.Thread(target=do, daemon=True).start()

    def _over(self, node, reason):
        node.give_up(reason)

    def release(self):
        for line in self.open.values():
            line.close()
        super().release()


@dataclass(frozen=True)
class Lined(Wired):
    """A backend whose rounds go over lines; its roster must have the same `lines`."""

    lines: CloudLines = field(default_factory=lambda: CloudLines("127.0.0.1:0", "127.0.0.1:0", TIMES))
    grids: list[LinedGrid] = field(default_factory=list)  # those that it opened

    @contextmanager
    def open(self, workload, nodes) -> Iterator[LineGrid]:
        with LinedGrid(workload, self, workload.partition.devices) as inner:
            self.grids.append(inner)
            with LineGrid(inner, self.lines) as grid:
                yield grid
