"""A node's end of its line to a run's cloud: hears of work, and answers it once, whatever happens to the stream."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import grpc

from fsl.errors import WireError
from fsl.installed import __version__
from fsl.messages import messages_pb2 as pb
from fsl.messages.heads import headed, read_frame
from fsl.messages.versions import PROTOCOL, check_versions
from fsl.quoting import one_line
from fsl.wire.frame_stream import TooLarge, ended, receive, send
from fsl.wire.line.line_meter import LineMeter
from fsl.wire.line.line_options import LINE_METHOD, LineLimits, LineTimes, line_options
from fsl.wire.line.offer import SERVER_NAME, LineOffer
from fsl.wire.loop import NetworkThread

log = logging.getLogger(__name__)
Code = grpc.StatusCode
Call = grpc.aio.StreamStreamCall
PROCESS = secrets.token_hex(8)  # names this process to the cloud
_PAUSE = (0.05, 1.0)  # seconds before it tries again: at first, and at most
_FOR_GOOD = {Code.UNAUTHENTICATED, Code.FAILED_PRECONDITION}  # a refusal that stands
_LEAVING = 2.0  # seconds for the last answer to leave


@dataclass(frozen=True)
class LineWork:
    """A piece of work that came over a line."""

    id: int
    kind: str
    content: bytes


class NodeLine:
    """One line. `hear` gets each piece of work once, `over` the reason why no more will come, on the line's thread.

    A line that breaks is opened again for `times.lost` seconds; the work that came goes on meanwhile, and its answer
    leaves when the line is back.
    """

    def __init__(
        self,
        node: int,
        offer: LineOffer,
        hear: Callable[["NodeLine", LineWork], None],
        over: Callable[[str], None],
        times: LineTimes | None = None,
        limits: LineLimits | None = None,
        meter: LineMeter | None = None,
    ) -> None:
        self.node = node
        self._offer = offer
        self._hear = hear
        self._over = over
        self._times = times or LineTimes()
        self._limits = limits or LineLimits()
        self._meter = meter or LineMeter()
        self._newest = 0  # of the work that it has heard of, in order; the cloud may say again what is not answered
        self._answers: dict[int, bytes] = {}  # frames that the cloud has not taken yet
        self._frames: asyncio.Queue[bytes] | None = None
        self._ended = False
        self._thread = NetworkThread(f"uplink-line-{node}")
        self._life = asyncio.run_coroutine_threadsafe(self._live(), self._thread.loop)

    @property
    def ended(self) -> bool:
        """Whether no more work will come."""
        return self._ended

    def answer(self, id: int, content: bytes, error: str = "") -> None:
        """Answer a piece of work, by its content or by the reason why there is none."""
        data = headed(pb.ToCloud(answer=pb.Answer(id=id, error=one_line(error, 2000))), content)
        self._thread.call(self._say, id, data)

    def close(self) -> None:
        """Hang up."""
        self._ended = True
        self._life.cancel()
        self._thread.close()

    def _say(self, id: int, data: bytes) -> None:
        if self._ended:
            return
        self._answers[id] = data
        if self._frames is not None:
            self._frames.put_nowait(data)

    async def _live(self) -> None:
        credentials = grpc.ssl_channel_credentials(self._offer.certificate.encode())
        options = [
            *line_options(self._times),
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        loop = asyncio.get_running_loop()
        reason = ""
        async with grpc.aio.secure_channel(self._offer.address, credentials, options=options) as channel:
            deadline, pause = loop.time() + self._times.lost, _PAUSE[0]
            while not reason:
                began = loop.time()
                try:
                    reason, why = await self._stream(channel), "the cloud ended the stream"
                except grpc.aio.AioRpcError as error:
                    why = one_line(error.details() or error.code().name)
                    if error.code() in _FOR_GOOD:
                        reason = why
                except (WireError, TooLarge) as error:
                    reason = str(error)
                except TimeoutError:
                    why = "the cloud said nothing"
                except Exception as error:  # whatever it is, nobody may wait for a dead line
                    log.exception("node %d: its line failed", self.node)
                    reason = f"{type(error).__name__}: {one_line(str(error))}"
                if self._opened > began:
                    deadline, pause = loop.time() + self._times.lost, _PAUSE[0]
                if not reason and loop.time() > deadline:
                    reason = f"the line to the cloud broke and did not come back ({why})"
                if not reason:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _PAUSE[1])
        self._ended = True
        self._answers.clear()
        log.info("node %d: its line to %s is over: %s", self.node, self._offer.address, reason)
        self._over(reason)

    _opened = 0.0  # when a stream was last open, by the loop's clock

    async def _stream(self, channel: grpc.aio.Channel) -> str:
        """Carry one stream; returns why the run is over, or "" where the stream alone has ended."""
        call: Call = channel.stream_stream(LINE_METHOD)()
        writer: asyncio.Task[None] | None = None
        opened = False
        try:
            await self._open(call)
            self._meter.opened(again=self._opened > 0)
            opened = True
            self._opened = asyncio.get_running_loop().time()
            frames: asyncio.Queue[bytes] = asyncio.Queue()
            self._frames = frames
            for answer in self._answers.values():
                frames.put_nowait(answer)
            writer = asyncio.create_task(_speak(frames, call))
            while (data := await receive(call, self._limits.max_bytes)) is not None:
                self._opened = asyncio.get_running_loop().time()
                message, rest = read_frame(data, pb.ToNode)
                if message.WhichOneof("body") == "over":
                    return one_line(message.over.reason) or "the run is over"
                self._take(message, rest)
            raise await ended(call)
        finally:
            self._frames = None
            if opened:
                self._meter.broke()
            call.cancel()  # before anything is awaited, where a second cancellation may come
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

    async def _open(self, call: Call) -> None:
        token = bytes.fromhex(self._offer.token)
        hello = pb.Hello(token=token, node=self.node, process=PROCESS, protocol=PROTOCOL, version=__version__)
        with suppress(grpc.aio.AioRpcError):  # of a stream that was refused: what it says comes by reading
            await call.write(headed(pb.ToCloud(hello=hello)))
        async with asyncio.timeout(self._times.opening):
            data = await receive(call, self._limits.opening_bytes)
        if data is None:
            raise await ended(call)
        message, _ = read_frame(data, pb.ToNode)
        if message.WhichOneof("body") != "welcome":
            raise WireError(f"the cloud said {message.WhichOneof('body')} where welcome is next")
        check_versions(message.welcome.protocol, message.welcome.version, "the cloud", "this node")

    def _take(self, message: pb.ToNode, rest: memoryview) -> None:
        if message.WhichOneof("body") == "taken":
            self._answers.pop(message.taken.id, None)
        elif message.WhichOneof("body") == "work":
            id = message.work.id
            if id > self._newest:
                self._newest = id
                self._hear(self, LineWork(id, message.work.kind, bytes(rest)))
        else:
            raise WireError(f"the cloud said {message.WhichOneof('body')} on an open line")


async def _speak(frames: "asyncio.Queue[bytes]", call: Call) -> None:
    while True:
        await send(call, await frames.get())
