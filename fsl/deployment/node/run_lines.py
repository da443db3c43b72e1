"""The lines of a resident process's nodes to the cloud of the present run."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from fsl.deployment.node.guard import SUPERLINK
from fsl.deployment.node.pipe import ANSWER, ERROR
from fsl.wire.line.line_meter import LineMeter
from fsl.wire.line.node_line import LineWork, NodeLine
from fsl.wire.line.offer import LineOffer

log = logging.getLogger(__name__)


class GivesUp(Protocol):
    """Gives up the round that it works on."""

    def give_up(self, reason: str) -> None:
        """Lose all its devices; from any thread."""


class LineReply:
    """Where the answer to a piece of work goes; it speaks as a `pipe.Connection`."""

    def __init__(self, line: NodeLine, id: int) -> None:
        self._line = line
        self._id = id

    def __enter__(self) -> "LineReply":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, what: bytes, data: bytes = b"") -> None:
        """Answer, by the content or by the reason why there is none; signs of life are the line's own."""
        if what == ANSWER:
            self._line.answer(self._id, data)
        elif what == ERROR:
            self._line.answer(self._id, b"", data.decode())

    def send_last(self, what: bytes, data: bytes = b"") -> bool:
        """As `send`; an answer whose line is over is missed by nobody."""
        self.send(what, data)
        return True


class RunLines:
    """Opens a line for each node of this process, all of one run at a time; gives up a round whose line is over.

    `work` gets what comes over a line, on the line's thread: where the answer goes, the message's head, its content.
    """

    def __init__(self, work: Callable[[LineReply, dict[str, Any], bytes], None], host: GivesUp) -> None:
        self._work = work
        self._host = host
        self._lines: dict[int, NodeLine] = {}
        self._run = ""

    @property
    def run(self) -> str:
        """The run whose cloud has a line here; empty where none has."""
        return self._run if any(not line.ended for line in list(self._lines.values())) else ""

    def open(
        self, run: str, node: int, offer: LineOffer, config: Mapping[str, Any], meter: LineMeter | None = None
    ) -> None:
        """Open a node's line in place of an earlier one; `meter` counts how it fares."""
        for other, line in list(self._lines.items()):
            if other == node or line.ended:
                self._lines.pop(other).close()
        self._run = run
        host, _, port = offer.address.rpartition(":")
        if not host:
            host = os.environ.get(SUPERLINK, "").rpartition(":")[0]
            if not host:
                log.warning("node %d opens no line: the cloud names no address (deployment.line_address)", node)
                return
        head = {"node": node, "run": run, "config": dict(config)}
        offer = replace(offer, address=f"{host}:{port}")
        self._lines[node] = NodeLine(
            node, offer, lambda line, work: self._hear(line, head, work), partial(self._over, node), meter=meter
        )

    def close(self) -> None:
        """Hang up everywhere."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def _hear(self, line: NodeLine, head: Mapping[str, Any], work: LineWork) -> None:
        self._work(LineReply(line, work.id), {**head, "kind": work.kind}, work.content)

    def _over(self, node: int, reason: str) -> None:
        if not self.run:
            self._host.give_up(reason)
