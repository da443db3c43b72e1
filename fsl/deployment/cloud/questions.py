"""Questions to nodes that are on their way: who is slow to answer, or never does, holds up nobody's round."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fsl.deployment.cloud.line_grid import LineGrid, pull_replies, wait_for_reply

_POLL = 0.5  # seconds between two polls for replies


@dataclass(frozen=True)
class _Asked:
    message: Message
    awaited: float  # until then somebody waits for the answer
    end: float  # until then it counts


class Questions:
    """Asks nodes, and collects what they answer now or later; a question counts for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asked: dict[str, _Asked] = {}  # by message id

    @property
    def nodes(self) -> frozenset[int]:
        """The nodes that were asked and have not answered."""
        return frozenset(asked.message.metadata.dst_node_id for asked in self._asked.values())

    def ask(self, grid: Grid, messages: Sequence[Message], patience: Mapping[int, float]) -> None:
        """Send one question to each of some nodes; `answers` waits so many seconds for a node's answer."""
        if messages:
            grid.push_messages(messages)
        now = time.monotonic()
        end = now + self._seconds
        for message in messages:
            awaited = min(now + patience[message.metadata.dst_node_id], end)
            self._asked[message.metadata.message_id] = _Asked(message, awaited, end)

    def answers(self, grid: Grid) -> list[Message]:
        """Returns what has come; waits for the answers to questions that have their time."""
        found: list[Message] = []
        while True:
            if self._asked:
                found += pull_replies(grid, {id: asked.message for id, asked in self._asked.items()})
            for reply in found:
                self._asked.pop(reply.metadata.reply_to_message_id, None)
            now = time.monotonic()
            self._drop(grid, [id for id, asked in self._asked.items() if now >= asked.end])
            awaited = [asked.awaited for asked in self._asked.values() if now < asked.awaited]
            if not awaited:
                return found
            wait_for_reply(grid, list(self._asked), min(_POLL, max(awaited) - now))

    def forget(self, grid: Grid, nodes: Collection[int]) -> None:
        """Give up waiting for these nodes' answers."""
        self._drop(grid, [id for id, asked in self._asked.items() if asked.message.metadata.dst_node_id in nodes])

    def _drop(self, grid: Grid, ids: Sequence[str]) -> None:
        for id in ids:
            del self._asked[id]
        if ids and isinstance(grid, LineGrid):
            grid.forget(ids)
