"""A device's line to its edge: opens a session, keeps it through broken connections, and reports when it ends."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fsl.errors import WireError
from fsl.installed import __version__
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import Arrived, frame
from fsl.messages.heads import read_frame
from fsl.messages.step_messages import Outgoing, as_frame
from fsl.messages.versions import PROTOCOL, VersionError, check_versions
from fsl.quoting import one_line
from fsl.wire.connections import Connections, Dialler
from fsl.wire.device.device_meter import DeviceMeter
from fsl.wire.device.invitation import Invitation
from fsl.wire.device.step_paths import StepPaths, Steps
from fsl.wire.frame_stream import ended, next_message, receive, send
from fsl.wire.loop import NetworkThread
from fsl.wire.options import METHOD, Certificates, Limits, Patience
from fsl.wire.steps.mailbox import Mailbox
from fsl.wire.steps.step_socket import StepSocket
from fsl.wire.tokens import PrivateKey, prove, public_bytes

Code = grpc.StatusCode
Call = grpc.aio.StreamStreamCall
# With these codes the connection may be at fault, or the door was crowded: the line tries again.
_AGAIN = frozenset({Code.UNAVAILABLE, Code.UNKNOWN, Code.CANCELLED, Code.RESOURCE_EXHAUSTED})
_STATUS = 0.25  # seconds for an edge to say why a lean stream broke; it says so again to a device that comes back
_PAUSE = (0.1, 2.0)  # seconds before the first next attempt, and at most


@dataclass(frozen=True)
class Heard:
    """The edge said something to a device."""

    device: int
    line: "Line"
    message: pb.ToDevice
    data: memoryview | Arrived
    size: int  # bytes of the whole frame


@dataclass(frozen=True)
class LineEnded:
    """A device's line has ended without success; `reason` says why."""

    device: int
    line: "Line"
    reason: str
    unreachable: bool = False  # this edge did not answer; another one may


@dataclass(frozen=True)
class Rewound:
    """The edge's copy of the session misses uploads that were served: the device goes back to `step`."""

    device: int
    line: "Line"
    step: int


Ear = Mailbox[Heard | LineEnded | Rewound]  # of the thread that computes


class Uplink:
    """A node's connections to edges: one channel for each address, one network thread for all.

    `steps` and `here`: as in `StepPaths`.
    """

    def __init__(
        self,
        key: PrivateKey,
        certificates: Certificates | None,
        limits: Limits,
        meter: DeviceMeter | None = None,
        steps: Steps = "auto",
        here: Path | None = None,
    ):
        self.meter = meter or DeviceMeter()
        self.key = key
        self.public_key = public_bytes(key.public_key())
        self.limits = limits
        self._dialler = Dialler(certificates, limits)
        self.thread = NetworkThread("uplink")
        self.paths = StepPaths(self._dialler.pem, steps, here)
        self._channels: dict[str, Connections] = {}
        self._openings: dict[str, asyncio.Semaphore] = {}

    def attend(self, invitation: Invitation, ear: Ear, patience: Patience, after: "Line | None" = None) -> "Line":
        """Begin a session whose events go to `ear`. `after`: an ended line, whose unsent frames this one takes over."""
        return Line(self, invitation, ear, patience, after)

    def channel(self, address: str) -> Connections:
        """The connections to an edge, on the network thread."""
        if address not in self._channels:
            self._channels[address] = Connections(address, self._dialler)
        return self._channels[address]

    def openings(self, address: str) -> asyncio.Semaphore:
        """Places for sessions that are being opened at an edge: no more at a time than its door takes of one node."""
        return self._openings.setdefault(address, asyncio.Semaphore(max(1, self.limits.connection_handshakes // 2)))

    def close(self) -> None:
        """End all connections."""
        self.thread.run(self._close())
        self.thread.close()

    async def _close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


class Line:
    """One session of one device; its public methods are for the thread that computes."""

    def __init__(
        self, uplink: Uplink, invitation: Invitation, ear: Ear, patience: Patience, after: "Line | None" = None
    ):
        self.invitation = invitation
        self.max_bytes = uplink.limits.max_message_bytes
        self._uplink = uplink
        self._thread = uplink.thread
        self._ear = ear
        self._patience = patience
        self._secret = b""
        self._served = invitation.served  # uploads
        self._outbox: deque[tuple[int, Outgoing]] = deque()  # messages by step, until they are served
        self._frames: asyncio.Queue[bytes] | None = None  # of the gRPC stream that carries steps
        self._steps: StepSocket | None = None  # the lean stream that carries them
        self._steps_ended: asyncio.Future[Exception | None] | None = None  # None: with the session
        self._lock = threading.RLock()  # guards outbox, streams and epoch
        self._leaving = False
        self._control: asyncio.Queue[bytes] | None = None  # of the gRPC stream that is open
        self._epoch = 0  # how often it went back
        self._thread.call(self._begin, after)

    def upload(self, step: int, message: Outgoing, epoch: int = 0) -> None:
        """Send an upload, and keep it until the edge has served it. WireError if it is larger than the edge takes.

        `epoch` counts how often the device went back: the line drops messages of an earlier one.
        """
        if (size := len(message) if isinstance(message, bytes) else message.size) > self.max_bytes:
            raise WireError(
                f"an upload of {size} bytes is above max-message-bytes={self.max_bytes}; raise that in the node "
                "configuration of device and edge, or use smaller batches"
            )
        with self._lock:
            if epoch != self._epoch:
                return
            self._outbox.append((step, message))
            if self._steps is not None:
                self._steps.write(message)
            elif self._frames is not None:
                self._thread.call(self._frames.put_nowait, as_frame(message))

    def close(self, step: int, data: bytes, epoch: int = 0) -> None:
        """Tell the edge that no upload follows; `data` is the frame that says so."""
        self.upload(step, data, epoch)

    def take_back(self, step: int) -> None:
        """Drop an upload of a line that has ended: the line after it does not send it again."""
        with self._lock:
            self._outbox = deque((number, message) for number, message in self._outbox if number != step)

    def leave(self, reason: str, to: int | None = None) -> None:
        """Tell the edge that the device stops here (`to`: it begins again at that edge), and end the line."""
        said = pb.Leave(reason=reason[:500], to=0 if to is None else to + 1)
        self._thread.call(self._leave, frame(pb.ToEdge(leave=said)))

    def hear(self, steps: StepSocket, message: pb.ToEdge | pb.ToDevice, data: memoryview | Arrived, size: int) -> bool:
        """Take a message of a lean stream."""
        assert isinstance(message, pb.ToDevice)
        with self._lock:
            if self._steps is not steps:
                return False  # the line is about to begin anew, and hears this again
            last = self._heard(message, data, size)
        if last:
            self._end_steps(None)
        return not last

    def broke(self, steps: StepSocket, error: Exception) -> None:
        """Hear that a lean stream has ended before its session."""
        with self._lock:
            if self._steps is steps:
                self._end_steps(error)

    def _end_steps(self, error: Exception | None) -> None:
        if (ended := self._steps_ended) is not None:
            self._thread.call(lambda: None if ended.done() else ended.set_result(error))

    # On the network thread.

    def _begin(self, after: "Line | None") -> None:
        if after is not None:  # its last messages lie in its outbox by now
            with self._lock:
                self._outbox.extendleft(reversed(after._outbox))
        self._task = asyncio.get_running_loop().create_task(self._run())

    def _leave(self, data: bytes) -> None:
        self._leaving = True
        if self._control is not None:
            self._control.put_nowait(data)
        else:
            self._task.cancel()

    async def _run(self) -> None:
        where = f"{self.invitation.who} at {self.invitation.address}"
        loop = asyncio.get_running_loop()
        self._deadline = deadline = loop.time() + self._patience.join
        pause = _PAUSE[0]
        while not self._leaving:
            try:
                await self._stream()
                return
            except grpc.aio.AioRpcError as error:
                code, reason = error.code(), error.details() or error.code().name
            except VersionError as error:
                code, reason = Code.FAILED_PRECONDITION, str(error)
            except Exception as error:  # whatever it is, no device may wait for a dead line
                code, reason = Code.DATA_LOSS, f"{type(error).__name__}: {error}"
            if self._leaving:
                return
            if self._opened:
                self._deadline = deadline = loop.time() + self._patience.straggler
                pause, self._opened = _PAUSE[0], False
            if code not in _AGAIN or loop.time() > deadline:
                self._tell(LineEnded(self.invitation.device, self, f"{where}: {one_line(reason)}", code in _AGAIN))
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE[1])

    _opened = False  # whether a session was open since the last failure
    _deadline = 0.0  # by then the line must have reached the edge

    async def _stream(self) -> None:
        """Carry the session over one connection until the edge closes it; raises what ended the connection before."""
        call: Call | None = None
        writer: asyncio.Task[None] | None = None
        try:
            async with self._place():
                call = self._uplink.channel(self.invitation.address).stream_stream(METHOD)()
                opened = await asyncio.wait_for(self._open(call), self._uplink.limits.handshake_seconds + 20)
                self._opened = True
                if self._secret:
                    self._uplink.meter.reconnected()
                self._secret = opened.secret
                self.max_bytes = min(self.max_bytes, opened.max_bytes)
                frames = self._control = asyncio.Queue()
                writer = asyncio.create_task(_write(frames, call))
                steps = await self._opened_steps(opened) if opened.ticket else None
            if opened.ticket and steps is None:
                frames.put_nowait(frame(pb.ToEdge(stay=pb.Stay(reason="no stream of steps could be opened"))))
            ended = self._take_up(opened, frames, steps)
            if ended is None:
                while await self._listen(call):
                    pass
            else:
                await self._until_steps_end(call, ended)
        finally:
            self._let_go()
            if call is not None:
                call.cancel()  # before anything is awaited, where a second cancellation may come
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

    def _take_up(
        self, opened: pb.Opened, frames: "asyncio.Queue[bytes]", steps: StepSocket | None
    ) -> "asyncio.Future[Exception | None] | None":
        """Send what the edge has not received, over the lean stream or else by `frames`; returns the former's end."""
        with self._lock:
            if opened.received < self._served:
                self._outbox.clear()
                self._served, self._epoch = opened.received, self._epoch + 1
                self._tell(Rewound(self.invitation.device, self, opened.received))
            waiting = [message for step, message in self._outbox if step >= opened.received]
            if steps is None:
                for message in waiting:
                    frames.put_nowait(as_frame(message))
                self._frames = frames
                return None
            for message in waiting:
                steps.queue(message)
            self._steps = steps
            ended = self._steps_ended = asyncio.get_running_loop().create_future()
        if not self._ear.call(steps.begin):
            steps.close()
        return ended

    def _let_go(self) -> None:
        with self._lock:
            steps, self._steps, self._frames, self._control = self._steps, None, None, None
        if steps is not None and not self._ear.call(steps.close):
            steps.close()  # nobody computes any more

    async def _opened_steps(self, opened: pb.Opened) -> StepSocket | None:
        sock = await self._uplink.paths.open(self.invitation.address, opened)
        if sock is None:
            return None
        return StepSocket(sock, pb.ToDevice, self._uplink.limits.max_message_bytes, self, self._ear)

    async def _until_steps_end(self, call: Call, ended: "asyncio.Future[Exception | None]") -> None:
        """Wait for the session's end on the lean stream; the gRPC stream tells why an edge ends it before."""
        told = asyncio.ensure_future(_said_last(call))
        try:
            ends: set[asyncio.Future[Any]] = {told, ended}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and told.result() is None:  # what the edge said last is on its way
                await asyncio.wait({ended}, timeout=self._uplink.limits.send_seconds)
            elif not told.done():
                await asyncio.wait({told}, timeout=0.0 if ended.result() is None else _STATUS)
        finally:
            told.cancel()
        broken = ended.result() if ended.done() else OSError("the edge ended the stream")
        if broken is None:
            return
        if told.done() and not told.cancelled() and (error := told.result()) is not None:
            raise error
        if not isinstance(broken, OSError):
            raise broken
        none = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(Code.UNAVAILABLE, none, none, str(broken))

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Wait for a place among the sessions that the node opens at the edge; AioRpcError where none comes free."""
        place = self._uplink.openings(self.invitation.address)
        try:
            await asyncio.wait_for(place.acquire(), max(0.1, self._deadline - asyncio.get_running_loop().time()))
        except TimeoutError:
            none = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(Code.UNAVAILABLE, none, none, "others wait to be let in there") from None
        try:
            yield
        finally:
            place.release()

    async def _open(self, call: Call) -> pb.Opened:
        said, uplink = self.invitation, self._uplink
        opening = pb.Open(
            token=said.token,
            public_key=uplink.public_key,
            up=said.up,
            down=said.down,
            served=self._served,
            secret=self._secret,
            left=0 if said.left is None or self._secret else said.left + 1,
            steps=uplink.paths.worth_trying(said.address),
            protocol=PROTOCOL,
            version=__version__,
        )
        await _say(call, pb.ToEdge(open=opening))
        challenge = (await _read(call, "challenge")).challenge
        check_versions(challenge.protocol, challenge.version, said.who, f"device {said.device}")
        signature = prove(uplink.key, challenge.nonce, said.edge, said.token)
        await _say(call, pb.ToEdge(proof=pb.Proof(signature=signature)))
        return (await _read(call, "opened")).opened

    async def _listen(self, call: Call) -> bool:
        """Hear the next message; False if it is the last."""
        data = await receive(call, self._uplink.limits.max_message_bytes)
        if data is None:
            raise await ended(call)
        message, rest = read_frame(data, pb.ToDevice)
        with self._lock:
            return not self._heard(message, rest, len(data))

    def _heard(self, message: pb.ToDevice, data: memoryview | Arrived, size: int) -> bool:
        """Pass a message on; returns whether it is the last."""
        kind = message.WhichOneof("body")
        self._served = max(self._served, message.reply.served, message.served.served)
        while self._outbox and self._outbox[0][0] < self._served:
            self._outbox.popleft()
        self._tell(Heard(self.invitation.device, self, message, data, size))
        return kind in ("closed", "moved")

    def _tell(self, event: Heard | LineEnded | Rewound) -> None:
        self._ear.put(event)


async def _said_last(call: Call) -> grpc.aio.AioRpcError | None:
    """Wait for a stream's end; returns why an edge ended it, None where it has said all.

    Nothing else may come there beside a lean stream.
    """
    if await receive(call, 0) is not None:
        raise WireError("the edge said something beside the stream of steps")
    return None if await call.code() is Code.OK else await ended(call)


async def _write(frames: "asyncio.Queue[bytes]", call: Call) -> None:
    while True:
        await send(call, await frames.get())


async def _say(call: Call, message: pb.ToEdge) -> None:
    try:
        await call.write(frame(message))
    except grpc.aio.AioRpcError:  # gRPC reports INTERNAL for a write to a refused stream
        raise await ended(call) from None


async def _read(call: Call, kind: str) -> pb.ToDevice:
    message, _ = read_frame(await next_message(call), pb.ToDevice)
    if message.WhichOneof("body") != kind:
        raise WireError(f"the edge said {message.WhichOneof('body')} where {kind} is next")
    return message
