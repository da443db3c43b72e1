"""Questions to nodes that are on their way: who is slow to answer, or never does, holds up nobody's round."""

import time
from collections.abc import Collection, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fsl.deployment.cloud.line_grid import LineGrid, wait_for_reply

_POLL = 0.5  # seconds between two polls for replies


class Questions:
    """Asks nodes, and collects what they answer now or later; a question counts for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asked: dict[str, tuple[int, float]] = {}  # by message id: the node, and when the question ends

    @property
    def nodes(self) -> frozenset[int]:
        """The nodes that were asked and have not answered."""
        return frozenset(node for node, _ in self._asked.values())

    def ask(self, grid: Grid, messages: Sequence[Message]) -> None:
        """Send one question to each of some nodes."""
        if messages:
            grid.push_messages(messages)
        end = time.monotonic() + self._seconds
        self._asked |= {message.metadata.message_id: (message.metadata.dst_node_id, end) for message in messages}

    def answers(self, grid: Grid, patient: Collection[int]) -> list[Message]:
        """Returns what has come; waits for these nodes' answers, as long as their questions count."""
        found: list[Message] = []
        while True:
            if self._asked:
                found += grid.pull_messages(list(self._asked))
            for reply in found:
                self._asked.pop(reply.metadata.reply_to_message_id, None)
            self._drop(grid, [id for id, (_, end) in self._asked.items() if time.monotonic() >= end])
            awaited = [id for id, (node, _) in self._asked.items() if node in patient]
            if not awaited:
                return found
            left = max(self._asked[id][1] for id in awaited) - time.monotonic()
            wait_for_reply(grid, list(self._asked), min(_POLL, max(0.0, left)))

    def forget(self, grid: Grid, nodes: Collection[int]) -> None:
        """Give up waiting for these nodes' answers."""
        self._drop(grid, [id for id, (node, _) in self._asked.items() if node in nodes])

    def _drop(self, grid: Grid, ids: Sequence[str]) -> None:
        for id in ids:
            del self._asked[id]
        if ids and isinstance(grid, LineGrid):
            grid.forget(ids)
