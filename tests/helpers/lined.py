"""Both ends of a line in one process, with a proxy between them whose connections can be cut."""

import threading

from fsl.deployment.processes import wait_until
from fsl.wire.line.cloud_lines import CloudLines
from fsl.wire.line.line_meter import LineMeter
from fsl.wire.line.line_options import LineLimits, LineTimes
from fsl.wire.line.node_line import NodeLine
from fsl.wire.line.offer import LineOffer
from tests.helpers.proxy import Proxy

TIMES = LineTimes(keepalive=1.0, lost=2.0, opening=2.0)
NODE = 7


class LinedNode:
    """One end of a line, which answers with what it heard; `gate` holds its answers back."""

    def __init__(self, offer: LineOffer, times: LineTimes = TIMES, node: int = NODE, meter: LineMeter | None = None):
        self.heard: list[tuple[int, str, bytes]] = []
        self.reason = ""
        self.gate = threading.Event()
        self.gate.set()
        self._threads: list[threading.Thread] = []
        self.line = NodeLine(node, offer, self._hear, self._over, times, meter=meter)

    def _hear(self, line, work):
        self.heard.append((work.id, work.kind, work.content))

        def answer():
            self.gate.wait(20)
            line.answer(work.id, b"did " + work.content)

        thread = threading.Thread(target=answer)
        thread.start()
        self._threads.append(thread)

    def _over(self, reason):
        self.reason = reason

    def is_over(self) -> bool:
        return wait_until(lambda: bool(self.reason), 10, 0.02)

    def close(self):
        self.gate.set()
        for thread in self._threads:
            thread.join(10)
        self.line.close()


class LinedCloud(CloudLines):
    """The other end, behind a proxy whose connections can be cut."""

    def __init__(self, times: LineTimes = TIMES, limits: LineLimits | None = None):
        super().__init__("127.0.0.1:0", "127.0.0.1:0", times, limits)
        self.proxy = Proxy()
        self.proxy.to("127.0.0.1", self.port)
        self.address = f"127.0.0.1:{self.proxy.port}"

    @property
    def strangers(self) -> int:
        return self._door.strangers

    def ask(self, id: int, content: bytes = b"it", seconds: float = 10.0):
        self.send(NODE, id, "train", content)
        return self.answer(id, seconds)

    def answer(self, id: int, seconds: float = 10.0):
        self.wait([id], seconds)
        (answer,) = self.take([id])
        return answer

    def close(self, reason: str = "the run has ended"):
        super().close(reason)
        self.proxy.close()
