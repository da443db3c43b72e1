"""Touches Flower's internals, which no other file does: task identity, message ids, and a Grid's bookkeeping.

Outside of Flower's own engines nobody sets the identity that `Message(...)` asks for. A process has one, so this
module sets it while any of fsl's Grids is open, and restores it when the last one closes. A Grid writes the run and
message ids that count into a message's metadata when it sends it, so that runs side by side do not collide.
"""

import itertools
import secrets
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

AppFactory = Callable[[], ClientApp]

_lock = threading.Lock()
_open_grids = 0
_before: tuple[int | None, int | None, int | None] = (None, None, None)


def enter_identity() -> None:
    """Give this process a task identity, unless an open Grid has done so."""
    global _open_grids, _before
    with _lock:
        if _open_grids == 0:
            _before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
            if None in _before:
                TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
        _open_grids += 1


def exit_identity() -> None:
    """Restore the identity from before the first Grid opened."""
    global _open_grids
    with _lock:
        _open_grids -= 1
        if _open_grids == 0:
            for name, value in zip(("_task_id", "_run_id", "_node_id"), _before):
                setattr(TaskIdentity, name, value)


def node_context(run_id: int, node_id: int) -> Context:
    """Returns the context of a simulated node."""
    return Context(run_id, node_id, UserConfig(), RecordDict(), UserConfig())


def unavailable(message: Message, reason: str) -> Message:
    """Returns an error reply in place of a node that died."""
    return Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message)


def with_content(message: Message, content: RecordDict) -> Message:
    """Returns a message of the same metadata with another content."""
    return make_message(message.metadata, content=content)


def stamp(message: Message, run_id: int, message_id: str) -> str:
    """Write the ids that count into a message that a Grid of fsl's sends; returns the message's."""
    message.metadata.__dict__["_run_id"] = run_id
    message.metadata.__dict__["_message_id"] = f"{run_id:x}-{message_id}"
    return message.metadata.message_id


def is_simulated(grid: Grid) -> bool:
    """Returns whether this is the Grid of Flower's own simulation engine, whose nodes live in its process."""
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)


class SimulationGrid(Grid):
    """A Grid over simulated nodes 1..n; a subclass answers batches of messages."""

    def __init__(self, nodes: int):
        self.run_id = secrets.randbits(63)
        self._run = Run.create_empty(self.run_id)
        self._node_ids = list(range(1, nodes + 1))
        self._message_ids = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._closed = False
        enter_identity()

    @abstractmethod
    def answer(self, messages: list[Message], timeout: float | None) -> list[Message]:
        """Returns one reply per message, an error reply where a node failed."""

    def release(self) -> None:
        """Release what the subclass holds."""

    def close(self) -> None:
        """End the Grid's nodes; a second call does nothing."""
        if not self._closed:
            self._closed = True
            try:
                self.release()
            finally:
                exit_identity()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def set_run(self, run: Run) -> None:
        """Take over a run's identity."""
        self._run = run
        self.run_id = run.run_id

    @property
    def run(self) -> Run:
        """Returns the run that this Grid belongs to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the simulated nodes' ids."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer the messages now, and keep the replies until they are pulled."""
        messages = list(messages)
        for reply in self.send_and_receive(messages):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies to these messages that nobody has pulled yet."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for the replies, at most `timeout` seconds."""
        messages = list(messages)
        for message in messages:
            stamp(message, self.run_id, str(next(self._message_ids)))
        return self.answer(messages, timeout)
