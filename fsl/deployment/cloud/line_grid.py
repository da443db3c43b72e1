"""A Flower Grid whose messages go over nodes' lines; who has none is served by Flower's own Grid."""

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from itertools import count
from types import TracebackType
from typing import Any, Self

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fsl.flower.internals import stamp
from fsl.flower.serde import SharedRecords, record_from_bytes
from fsl.quoting import one_line
from fsl.wire.line.cloud_lines import CloudLines, LineAnswer

log = logging.getLogger(__name__)
_POLL = 0.5  # seconds between two polls of Flower's own Grid


class LineGrid(Grid):
    """Sends messages over `lines` to nodes that have one, and over `grid` to the others.

    A strategy sees a Grid like any other. Work whose line is lost comes back as an error reply, as of a node that is
    gone.
    """

    def __init__(self, grid: Grid, lines: CloudLines) -> None:
        self._grid = grid
        self._lines = lines
        self._ids = count(1)
        self._sent: dict[str, tuple[int, Message]] = {}  # by message id: the line's own id, and the message
        self._without: set[int] = set()  # nodes whose missing line the log has named

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close("the run has ended" if error is None else "the run's cloud has ended")

    def set_run(self, run: Run) -> None:
        """Take over a run's identity."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Returns the run that this Grid belongs to."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a message to a node."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the nodes that Flower counts as online."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Any:
        """Returns what Flower knows of its nodes: keys and names; nothing where its Grid does not tell."""
        ask = getattr(self._grid, "get_nodes", None)
        return [] if ask is None else ask()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; returns their ids."""
        ids, others = [], []
        messages, records = list(messages), SharedRecords()
        self._lines.wait_open({m.metadata.dst_node_id for m in messages} & self._lines.expected)
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self._lines.open:
                if message.metadata.message_type != MessageType.QUERY:  # by which a node gets its line
                    self._name(node)
                others.append(message)
                continue
            number = next(self._ids)
            id = stamp(message, self.run.run_id, f"line-{number}")
            self._sent[id] = (number, message)
            self._lines.send(node, number, message.metadata.message_type, records.bytes_of(message.content))
            ids.append(id)
        return [*ids, *self._grid.push_messages(others)] if others else ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that have come and that nobody has pulled yet."""
        wanted = list(message_ids)
        lined = {self._sent[id][0]: id for id in wanted if id in self._sent}
        replies = [self._reply(lined[answer.id], answer) for answer in self._lines.take(lined)]
        others = [id for id in wanted if id not in self._sent and id not in lined.values()]
        return [*replies, *self._grid.pull_messages(others)] if others else replies

    def wait(self, message_ids: Iterable[str], seconds: float) -> None:
        """Wait until a reply to one of these may have come, at most so many seconds."""
        wanted = list(message_ids)
        if any(id not in self._sent for id in wanted):
            seconds = min(seconds, _POLL)
        self._lines.wait([self._sent[id][0] for id in wanted if id in self._sent], seconds)

    def forget(self, message_ids: Iterable[str]) -> None:
        """Give up waiting for these; a late answer is dropped."""
        self._lines.drop([self._sent.pop(id)[0] for id in list(message_ids) if id in self._sent])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for the replies, at most `timeout` seconds."""
        waiting, replies = set(self.push_messages(messages)), []
        deadline = None if timeout is None else time.monotonic() + timeout
        while waiting and (deadline is None or time.monotonic() < deadline):
            new = list(self.pull_messages(waiting))
            replies += new
            waiting -= {reply.metadata.reply_to_message_id for reply in new}
            if waiting and not new:
                self.wait(waiting, _POLL if deadline is None else max(0.0, deadline - time.monotonic()))
        self.forget(waiting)
        return replies

    def _reply(self, id: str, answer: LineAnswer) -> Message:
        _, message = self._sent.pop(id)
        code = ErrorCode.NODE_UNAVAILABLE if answer.lost else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        if answer.error:
            return Message(Error(code, answer.error), reply_to=message)
        try:
            return Message(record_from_bytes(answer.content), reply_to=message)
        except Exception as error:  # whatever it sent, one node's nonsense ends no run
            return Message(Error(code, f"its answer cannot be read ({one_line(str(error), 200)})"), reply_to=message)

    def _name(self, node: int) -> None:
        if node not in self._without:
            self._without.add(node)
            log.warning("node %d has no line: Flower's messages serve it, which take seconds each", node)


def pull_replies(grid: Grid, sent: Mapping[str, Message]) -> list[Message]:
    """Returns the replies that have come to some messages (by id), each as of the node that was asked.

    Flower answers by itself, as its own node, for a node that is gone.
    """
    replies = []
    for reply in grid.pull_messages(list(sent)):
        asked = sent[reply.metadata.reply_to_message_id]
        if reply.has_error() and reply.metadata.src_node_id != asked.metadata.dst_node_id:
            reply = Message(reply.error, reply_to=asked)
        replies.append(reply)
    return replies


def wait_for_reply(grid: Grid, ids: Collection[str], seconds: float) -> None:
    """Wait for a reply where the Grid knows when one comes; else for so many seconds."""
    if isinstance(grid, LineGrid):
        grid.wait(ids, seconds)
    else:
        time.sleep(seconds)
