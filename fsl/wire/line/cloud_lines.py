"""The cloud's end of a run's lines: sends work to nodes, and keeps what they answer until somebody takes it."""

import asyncio
import hmac
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc

from fsl.errors import ConfigError, TrustError, WireError
from fsl.installed import __version__
from fsl.messages import messages_pb2 as pb
from fsl.messages.heads import headed, read_frame
from fsl.messages.versions import PROTOCOL, check_versions
from fsl.quoting import one_line
from fsl.wire.frame_stream import TooLarge, receive, send
from fsl.wire.line.line_options import LINE_METHOD, LineLimits, LineTimes, line_options
from fsl.wire.line.offer import LineOffer
from fsl.wire.line.run_certificate import make_certificate
from fsl.wire.loop import NetworkThread

log = logging.getLogger(__name__)
Code = grpc.StatusCode
Context = grpc.aio.ServicerContext
_LEAVING = 2.0  # seconds for the last words to leave
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


class CloudLines:
    """All lines of one run. `address`: host:port at which nodes reach `listen`; port 0 takes a free one.

    Everything else may be called from one other thread.
    """

    def __init__(
        self, listen: str, address: str, times: LineTimes | None = None, limits: LineLimits | None = None
    ) -> None:
        self.times = times or LineTimes()
        self.limits = limits or LineLimits()
        certificate, self._key = make_certificate()
        self._certificate = certificate
        self._lines: dict[int, _Line] = {}
        self._answers: dict[int, LineAnswer] = {}
        self._open: frozenset[int] = frozenset()
        self._expected: frozenset[int] = frozenset()
        self._news = threading.Condition()  # of answers, and of lines that open or are given up
        self._strangers = 0
        self._thread = NetworkThread("uplink-lines")
        try:
            self.port = self._thread.run(self._start(listen))
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
        return LineOffer(address=self.address, certificate=self._certificate.decode(), token=token.hex())

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

    def close(self, reason: str = "the run has ended") -> None:
        """Tell every node that the run is over, and end the server."""
        self._thread.run(self._close(reason), _LEAVING + 10)
        self._thread.close()

    # On the network thread.

    async def _start(self, listen: str) -> int:
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._line)
        service, method = LINE_METHOD.strip("/").split("/")
        options = [
            *line_options(self.times),
            ("grpc.max_concurrent_streams", 4),
            ("grpc.max_allowed_incoming_connections", self.limits.connections),
            ("grpc.server_handshake_timeout_ms", int(1000 * self.times.opening)),
            ("grpc.max_metadata_size", 4 << 10),
            ("grpc.absolute_max_metadata_size", 8 << 10),
            ("grpc.compression_enabled_algorithms_bitset", 1),
        ]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        try:
            credentials = grpc.ssl_server_credentials([(self._key, self._certificate)])
            port = self._server.add_secure_port(listen, credentials)
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError(
                f"deployment.line_listen={listen}: the cloud cannot listen there; another run may be at work, one has "
                "lines at a time: wait for it (`flwr list`), or name another host:port, or use deployment.line=flower"
            )
        await self._server.start()
        return port

    async def _expect(self, node: int, token: bytes) -> None:
        if (line := self._lines.get(node)) is not None:
            self._give_up(line, "it was offered another line")
            _end(line, "another line was offered")
        self._lines[node] = _Line(node, token)

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

    async def _line(self, _: AsyncIterator[bytes], context: Context) -> None:
        """Carry one stream."""
        try:
            line, hello = await self._hello(context)
        except TrustError as error:
            await self._refuse(context, Code.UNAUTHENTICATED, str(error))
            return
        except WireError as error:
            await self._refuse(context, Code.FAILED_PRECONDITION, str(error))
            return
        frames, ended = self._begin(line, hello.process, context)
        writer = asyncio.create_task(_speak(frames, context))
        reader = asyncio.create_task(self._listen(line, frames, context))
        try:
            ends: set[asyncio.Future[Any]] = {writer, reader, ended}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():  # gRPC ends a stream with a reason only when nothing is being written
                await asyncio.wait({writer}, timeout=_LEAVING)
                await self._refuse(context, Code.ABORTED, ended.result())
        finally:
            for task in (writer, reader):
                task.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)
            self._broke(line, frames)

    async def _hello(self, context: Context) -> tuple[_Line, pb.Hello]:
        if self._strangers >= self.limits.handshakes:
            raise WireError("too many are at the door; come again")
        self._strangers += 1
        try:
            async with asyncio.timeout(self.times.opening):
                data = await receive(context, self.limits.opening_bytes)
        except TimeoutError:
            raise WireError("nobody said who is there") from None
        except TooLarge as error:
            raise WireError(str(error)) from None
        finally:
            self._strangers -= 1
        if data is None:
            raise WireError("nobody said who is there")
        message, _ = read_frame(data, pb.ToCloud)
        if message.WhichOneof("body") != "hello":
            raise WireError("a line begins with a Hello")
        hello = message.hello
        line = self._lines.get(hello.node)
        if line is None or not hmac.compare_digest(line.token, hello.token):
            raise TrustError("no line was offered with this token")
        check_versions(hello.protocol, hello.version, "this node", "the cloud")
        return line, hello

    def _begin(self, line: _Line, process: str, context: Context) -> "tuple[Frames, asyncio.Future[str]]":
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
        while (data := await receive(context, self.limits.max_bytes)) is not None:
            message, rest = read_frame(data, pb.ToCloud)
            if message.WhichOneof("body") != "answer":
                raise WireError(f"a node said {message.WhichOneof('body')} on an open line")
            answer = message.answer
            if line.waiting.pop(answer.id, None) is not None:
                self._answered(LineAnswer(answer.id, bytes(rest), one_line(answer.error, 2000)))
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

    async def _refuse(self, context: Context, code: grpc.StatusCode, reason: str) -> None:
        log.info("a line from %s was refused: %s", context.peer(), reason)
        await context.abort(code, reason)

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
        await self._server.stop(0.5)


def _end(line: _Line, reason: str) -> None:
    if line.stream is not None:
        line.stream.set_result(reason)
        if line.frames is not None:
            line.frames.put_nowait(None)
        line.frames = line.stream = None


async def _speak(frames: "Frames", context: Context) -> None:
    while (data := await frames.get()) is not None:
        await send(context, data)
