"""The cloud's end of a run's lines: sends work to nodes, and keeps what they answer until somebody takes it."""

import asyncio
import hmac
import logging
import secrets
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc

from fsl.errors import TrustError, WireError
from fsl.installed import __version__
from fsl.messages import messages_pb2 as pb
from fsl.messages.heads import headed, read_frame
from fsl.messages.versions import PROTOCOL, check_versions
from fsl.quoting import one_line
from fsl.wire.frame_stream import TooLarge, receive_rest, send, skip_rest
from fsl.wire.line.line_door import Context, LineDoor
from fsl.wire.line.line_options import LineLimits, LineTimes
from fsl.wire.line.offer import LineOffer
from fsl.wire.loop import NetworkThread

log = logging.getLogger(__name__)
_LEAVING = 2.0  # seconds for the last words to leave
_MINUTE = 60.0
Frames = asyncio.Queue[bytes | None]  # to a node; None ends them


@dataclass(frozen=True)
class LineAnswer:
    """A node's answer to one piece of work: its content, or why there is none."""

    id: int
    content: bytes
    error: str = ""
    lost: bool = False  # the node did not say so: its line is gone


@dataclass
class _Line:
    """One node's line; only the network thread touches it, but for `token`."""

    node: int
    token: bytes
    process: str = ""  # the resident process that opened it
    frames: "Frames | None" = None  # to the node; None while no stream is open
    stream: "asyncio.Future[str] | None" = None  # of the present stream: a result ends it, with this reason
    waiting: dict[int, bytes] = field(default_factory=dict)  # work without an answer, as frames by id
    giving_up: asyncio.TimerHandle | None = None
    came: list[float] = field(default_factory=list)  # when streams began within the last minute, by the loop's clock
    strays: int = 0  # answers in a row that nobody asked for


class CloudLines:
    """All lines of one run. `address`: host:port at which nodes reach `listen`; port 0 takes a free one.

    `wait`: seconds to wait for a port that another run is leaving. Everything else may be called from one other
    thread.
    """

    def __init__(
        self,
        listen: str,
        address: str,
        times: LineTimes | None = None,
        limits: LineLimits | None = None,
        wait: float = 15.0,
    ) -> None:
        self.times = times or LineTimes()
        self.limits = limits or LineLimits()
        self._door = LineDoor(self.times, self.limits, self._carry)
        self._lines: dict[int, _Line] = {}
        self._answers: dict[int, LineAnswer] = {}
        self._open: frozenset[int] = frozenset()
        self._expected: frozenset[int] = frozenset()
        self._news = threading.Condition()  # of answers, and of lines that open or are given up
        self._thread = NetworkThread("uplink-lines")
        try:
            self.port = self._thread.run(self._door.start(listen, wait), wait + 30)
        except BaseException:
            self._thread.close()
            raise
        host, _, port = address.rpartition(":")
        self.address = f"{host}:{self.port if port == '0' else port}"

    # Called by the run.

    def offer(self, node: int) -> LineOffer:
        """Returns an offer to a node; an earlier one counts no more, and its line ends."""
        token = secrets.token_bytes(32)
        self._thread.run(self._expect(node, token))
        return LineOffer(address=self.address, certificate=self._door.certificate.decode(), token=token.hex())

    @property
    def expected(self) -> frozenset[int]:
        """The nodes that were offered a line, and may still open it."""
        return self._expected

    def expect(self, nodes: Iterable[int]) -> None:
        """From now on wait for the lines of these nodes, which have accepted their offers."""
        self._expected |= frozenset(nodes)

    @property
    def open(self) -> frozenset[int]:
        """The nodes whose line is open, or broke so lately that it may come back."""
        return self._open

    def wait_open(self, nodes: Collection[int], seconds: float | None = None) -> None:
        """Wait until these nodes' lines are open, at most so many seconds."""
        with self._news:
            self._news.wait_for(
                lambda: self._open.issuperset(nodes), self.times.opening if seconds is None else seconds
            )
        self._expected -= frozenset(nodes)  # who has none by now is waited for no more

    def send(self, node: int, id: int, kind: str, content: bytes) -> None:
        """Send work to a node; its answer, or why there will be none, comes by `take`."""
        data = headed(pb.ToNode(work=pb.Work(id=id, kind=kind)), content)
        self._thread.call(self._send, node, id, data)

    def take(self, ids: Iterable[int]) -> list[LineAnswer]:
        """Returns the answers to these that have come and that nobody took yet."""
        with self._news:
            return [self._answers.pop(id) for id in list(ids) if id in self._answers]

    def wait(self, ids: Collection[int], seconds: float) -> None:
        """Wait until an answer to one of these has come, at most so many seconds."""
        with self._news:
            if not any(id in self._answers for id in ids):
                self._news.wait_for(lambda: any(id in self._answers for id in ids), seconds)

    def drop(self, ids: Iterable[int]) -> None:
        """Forget work that nobody waits for any more; a late answer to it is taken and dropped."""
        self._thread.call(self._drop, list(ids))

    def revoke(self, node: int, reason: str) -> None:
        """End a node's line, and what it works on, with this reason; its offer counts no more."""
        self._expected -= {node}
        self._thread.run(self._revoke(node, reason))

    def close(self, reason: str = "the run has ended") -> None:
        """Tell every node that the run is over, and end the server; a second call does nothing."""
        if self._thread.loop.is_closed():
            return
        self._thread.run(self._close(reason), _LEAVING + 10)
        self._thread.close()

    # On the network thread.

    async def _expect(self, node: int, token: bytes) -> None:
        if (line := self._lines.get(node)) is not None:
            self._give_up(line, "it was offered another line")
            _end(line, "another line was offered")
        self._lines[node] = _Line(node, token)

    async def _revoke(self, node: int, reason: str) -> None:
        if (line := self._lines.get(node)) is not None:
            self._take_away(line, reason)

    def _send(self, node: int, id: int, data: bytes) -> None:
        line = self._lines.get(node)
        if line is None or node not in self._open:
            self._answered(LineAnswer(id, b"", "its line is not open", lost=True))
            return
        line.waiting[id] = data
        if line.frames is not None:
            line.frames.put_nowait(data)

    def _drop(self, ids: list[int]) -> None:
        for line in self._lines.values():
            for id in ids:
                line.waiting.pop(id, None)
        with self._news:
            for id in ids:
                self._answers.pop(id, None)

    async def _carry(self, hello: pb.Hello, context: Context) -> None:
        """Carry one stream."""
        line = self._offered(hello)
        frames, ended = self._begin(line, hello.process, context)
        writer = asyncio.create_task(_speak(frames, context))
        reader = asyncio.create_task(self._listen(line, frames, context))
        try:
            ends: set[asyncio.Future[Any]] = {writer, reader, ended}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and reader.done() and isinstance(error := reader.exception(), WireError | TooLarge):
                self._take_away(line, str(error))
            if ended.done():  # gRPC ends a stream with a reason only when nothing is being written
                await asyncio.wait({writer}, timeout=_LEAVING)
                await self._door.refuse(context, grpc.StatusCode.ABORTED, ended.result())
        finally:  # before anything is awaited: gRPC cancels who carries a stream that the node ends
            self._broke(line, frames)
            for task in (writer, reader):
                task.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)

    def _offered(self, hello: pb.Hello) -> _Line:
        """Returns the line of who says this; TrustError for a stranger, VersionError for another fsl."""
        line = self._lines.get(hello.node)
        if line is None or not hmac.compare_digest(line.token, hello.token):
            raise TrustError("no line was offered with this token")
        check_versions(hello.protocol, hello.version, "this node", "the cloud")
        return line

    def _begin(self, line: _Line, process: str, context: Context) -> "tuple[Frames, asyncio.Future[str]]":
        now = asyncio.get_running_loop().time()
        line.came = [*(since for since in line.came if now - since < _MINUTE), now]
        if len(line.came) > self.limits.returns:
            reason = f"it opened its line {len(line.came)} times within a minute"
            self._take_away(line, reason)
            raise WireError(reason)
        if line.process and line.process != process:
            self._lose(line, "it restarted, and has nothing of the round")
        if line.giving_up is not None:
            line.giving_up.cancel()
            line.giving_up = None
        _end(line, "the node is back on another stream")  # it may be half open
        line.process = process
        frames: Frames = asyncio.Queue()
        line.frames = frames
        line.stream = asyncio.get_running_loop().create_future()
        frames.put_nowait(headed(pb.ToNode(welcome=pb.Welcome(protocol=PROTOCOL, version=__version__))))
        for data in line.waiting.values():
            frames.put_nowait(data)
        log.info("node %d has a line, from %s", line.node, context.peer())
        self._opened()
        return frames, line.stream

    async def _listen(self, line: _Line, frames: "Frames", context: Context) -> None:
        """Take answers; only what the node was asked for takes memory."""
        while (first := await context.read()) is not grpc.aio.EOF:
            message, rest = read_frame(first, pb.ToCloud)
            if message.WhichOneof("body") != "answer":
                raise WireError(f"a node said {message.WhichOneof('body')} on an open line")
            answer, begins = message.answer, len(first) - len(rest)
            if answer.id in line.waiting:
                if (data := await receive_rest(context, first, self.limits.max_bytes)) is None:
                    return
                line.strays = 0
                if line.waiting.pop(answer.id, None) is not None:
                    self._answered(LineAnswer(answer.id, data[begins:], one_line(answer.error, 2000)))
            else:  # it is late, or was said again
                await skip_rest(context, first)
                line.strays += 1
                if line.strays > self.limits.strays:
                    raise WireError(f"{line.strays} answers in a row that nobody asked for")
            frames.put_nowait(headed(pb.ToNode(taken=pb.Taken(id=answer.id))))

    def _broke(self, line: _Line, frames: "Frames") -> None:
        if line.frames is not frames:  # a newer stream has taken its place
            return
        line.frames = line.stream = None
        if self._lines.get(line.node) is not line:
            return
        log.info("node %d: its line broke; it has %g s to come back", line.node, self.times.lost)
        loop = asyncio.get_running_loop()
        line.giving_up = loop.call_later(self.times.lost, self._give_up, line, "its line broke, and did not come back")

    def _give_up(self, line: _Line, reason: str) -> None:
        if line.giving_up is not None:
            line.giving_up.cancel()
        self._lose(line, reason)
        if self._lines.get(line.node) is line:
            del self._lines[line.node]
        self._opened()

    def _take_away(self, line: _Line, reason: str) -> None:
        """End a line for good, and tell its node why."""
        log.info("node %d: its line is closed: %s", line.node, reason)
        self._give_up(line, reason)
        if line.frames is not None:
            while not line.frames.empty():
                line.frames.get_nowait()
            line.frames.put_nowait(headed(pb.ToNode(over=pb.Over(reason=reason))))
        _end(line, reason)

    def _lose(self, line: _Line, reason: str) -> None:
        for id in list(line.waiting):
            del line.waiting[id]
            self._answered(LineAnswer(id, b"", reason, lost=True))

    def _answered(self, answer: LineAnswer) -> None:
        with self._news:
            self._answers[answer.id] = answer
            self._news.notify_all()

    def _opened(self) -> None:
        with self._news:
            self._open = frozenset(node for node, line in self._lines.items() if line.process)
            self._news.notify_all()

    async def _close(self, reason: str) -> None:
        over = headed(pb.ToNode(over=pb.Over(reason=reason)))
        for line in self._lines.values():
            if line.giving_up is not None:
                line.giving_up.cancel()
            if line.frames is not None:
                line.frames.put_nowait(over)
        deadline = asyncio.get_running_loop().time() + _LEAVING
        while any(line.frames is not None for line in self._lines.values()):  # a node hangs up when it has heard it
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.02)
        await self._door.stop()


def _end(line: _Line, reason: str) -> None:
    if line.stream is not None:
        line.stream.set_result(reason)
        if line.frames is not None:
            line.frames.put_nowait(None)
        line.frames = line.stream = None


async def _speak(frames: "Frames", context: Context) -> None:
    while (data := await frames.get()) is not None:
        await send(context, data)
