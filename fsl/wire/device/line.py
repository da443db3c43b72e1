"""A device's line to its edge: opens a session, keeps it through broken connections, and reports when it ends."""

import asyncio
import queue
from collections import deque
from dataclasses import dataclass
from functools import partial

import grpc

from fsl.errors import WireError
from fsl.installed import __version__
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import frame
from fsl.messages.heads import read_frame
from fsl.messages.versions import PROTOCOL, VersionError, check_versions
from fsl.quoting import one_line
from fsl.wire.device.connections import Connections
from fsl.wire.device.device_meter import DeviceMeter
from fsl.wire.device.invitation import Invitation
from fsl.wire.frame_stream import ended, next_message, receive, send
from fsl.wire.loop import NetworkThread
from fsl.wire.options import METHOD, Certificates, Limits, Patience, client_options
from fsl.wire.tokens import PrivateKey, prove, public_bytes

Code = grpc.StatusCode
Call = grpc.aio.StreamStreamCall
# With these codes the connection may be at fault, or the door was crowded: the line tries again.
_AGAIN = frozenset({Code.UNAVAILABLE, Code.UNKNOWN, Code.CANCELLED, Code.RESOURCE_EXHAUSTED})
_PAUSE = (0.1, 2.0)  # seconds before the first next attempt, and at most


@dataclass(frozen=True)
class Heard:
    """The edge said something to a device."""

    device: int
    line: "Line"
    message: pb.ToDevice
    data: memoryview
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


Ear = queue.SimpleQueue  # of Heard, LineEnded and Rewound; from the network thread to the one that computes


class Uplink:
    """A node's connections to edges: one channel for each address, one network thread for all."""

    def __init__(
        self, key: PrivateKey, certificates: Certificates | None, limits: Limits, meter: DeviceMeter | None = None
    ):
        self.meter = meter or DeviceMeter()
        self.key = key
        self.public_key = public_bytes(key.public_key())
        self.limits = limits
        self.thread = NetworkThread("uplink")
        self._certificates = certificates
        self._channels: dict[str, Connections] = {}
        self._openings: dict[str, asyncio.Semaphore] = {}

    def attend(self, invitation: Invitation, ear: Ear, patience: Patience, after: "Line | None" = None) -> "Line":
        """Begin a session whose events go to `ear`. `after`: an ended line, whose unsent frames this one takes over."""
        return Line(self, invitation, ear, patience, after)

    def channel(self, address: str) -> Connections:
        """The connections to an edge, on the network thread."""
        if address not in self._channels:
            self._channels[address] = Connections(partial(self._connect, address), self.limits)
        return self._channels[address]

    def openings(self, address: str) -> asyncio.Semaphore:
        """Places for sessions that are being opened at an edge: no more at a time than its door takes of one node."""
        return self._openings.setdefault(address, asyncio.Semaphore(max(1, self.limits.connection_handshakes // 2)))

    def _connect(self, address: str) -> grpc.aio.Channel:
        options = client_options(self.limits)
        if self._certificates is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self._certificates.channel(), options=options)

    def close(self) -> None:
        """End all connections."""
        self.thread.run(self._close())
        self.thread.close()

    async def _close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


class Line:
    """One session of one device; `upload`, `close` and `leave` are for the thread that computes."""

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
        self._outbox: deque[tuple[int, bytes]] = deque()  # frames by step, until they are served
        self._frames: asyncio.Queue[bytes] | None = None  # of the stream that is open
        self._leaving = False
        self._epoch = 0  # how often it went back
        self._thread.call(self._begin, after)

    def upload(self, step: int, data: bytes, epoch: int = 0) -> None:
        """Send an upload, and keep it until the edge has served it. WireError if it is larger than the edge takes.

        `epoch` counts how often the device went back: the line drops frames of an earlier one.
        """
        if len(data) > self.max_bytes:
            raise WireError(
                f"an upload of {len(data)} bytes is above max-message-bytes={self.max_bytes}; raise that in the node "
                "configuration of device and edge, or use smaller batches"
            )
        self._thread.call(self._send, step, data, epoch)

    def close(self, step: int, data: bytes, epoch: int = 0) -> None:
        """Tell the edge that no upload follows; `data` is the frame that says so."""
        self._thread.call(self._send, step, data, epoch)

    def leave(self, reason: str, to: int | None = None) -> None:
        """Tell the edge that the device stops here (`to`: it begins again at that edge), and end the line."""
        said = pb.Leave(reason=reason[:500], to=0 if to is None else to + 1)
        self._thread.call(self._leave, frame(pb.ToEdge(leave=said)))

    # On the network thread.

    def _begin(self, after: "Line | None") -> None:
        if after is not None:  # its last frames lie in its outbox by now
            self._outbox.extend(after._outbox)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def _send(self, step: int, data: bytes, epoch: int) -> None:
        if epoch != self._epoch:
            return
        self._outbox.append((step, data))
        if self._frames is not None:
            self._frames.put_nowait(data)

    def _leave(self, data: bytes) -> None:
        self._leaving = True
        if self._frames is not None:
            self._frames.put_nowait(data)
        else:
            self._task.cancel()

    async def _run(self) -> None:
        where = f"edge {self.invitation.edge} at {self.invitation.address}"
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
                self._hear(LineEnded(self.invitation.device, self, f"{where}: {one_line(reason)}", code in _AGAIN))
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE[1])

    _opened = False  # whether a session was open since the last failure
    _deadline = 0.0  # by then the line must have reached the edge

    async def _stream(self) -> None:
        """Carry the session over one connection until the edge closes it; raises what ended the connection before."""
        call, opened = await self._opened_call()
        try:
            self._opened = True
            if self._secret:
                self._uplink.meter.reconnected()
            self._secret = opened.secret
            self.max_bytes = min(self.max_bytes, opened.max_bytes)
            if opened.received < self._served:
                self._outbox.clear()
                self._served, self._epoch = opened.received, self._epoch + 1
                self._hear(Rewound(self.invitation.device, self, opened.received))
            self._frames = asyncio.Queue()
            for step, data in self._outbox:
                if step >= opened.received:
                    self._frames.put_nowait(data)
            writer = asyncio.create_task(_write(self._frames, call))
            try:
                while await self._listen(call):
                    pass
            finally:
                self._frames = None
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
        finally:
            call.cancel()

    async def _opened_call(self) -> tuple[Call, pb.Opened]:
        address, place = self.invitation.address, self._uplink.openings(self.invitation.address)
        try:
            await asyncio.wait_for(place.acquire(), max(0.1, self._deadline - asyncio.get_running_loop().time()))
        except TimeoutError:
            none = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(Code.UNAVAILABLE, none, none, "others wait to be let in there") from None
        call: Call | None = None
        try:
            call = self._uplink.channel(address).stream_stream(METHOD)()
            return call, await asyncio.wait_for(self._open(call), self._uplink.limits.handshake_seconds + 20)
        except BaseException:
            if call is not None:
                call.cancel()
            raise
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
            protocol=PROTOCOL,
            version=__version__,
        )
        await _say(call, pb.ToEdge(open=opening))
        challenge = (await _read(call, "challenge")).challenge
        check_versions(challenge.protocol, challenge.version, f"edge {said.edge}", f"device {said.device}")
        signature = prove(uplink.key, challenge.nonce, said.edge, said.token)
        await _say(call, pb.ToEdge(proof=pb.Proof(signature=signature)))
        return (await _read(call, "opened")).opened

    async def _listen(self, call: Call) -> bool:
        """Hear the next message; False if it is the last."""
        data = await receive(call, self._uplink.limits.max_message_bytes)
        if data is None:
            raise await ended(call)
        message, rest = read_frame(data, pb.ToDevice)
        kind = message.WhichOneof("body")
        self._served = max(self._served, message.reply.served, message.served.served)
        while self._outbox and self._outbox[0][0] < self._served:
            self._outbox.popleft()
        self._hear(Heard(self.invitation.device, self, message, rest, len(data)))
        return kind not in ("closed", "moved")

    def _hear(self, event: Heard | LineEnded | Rewound) -> None:
        self._ear.put(event)


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
