"""Connections of devices that break, or say other things, where a test wants it."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import grpc

from fsl.messages import messages_pb2 as pb
from fsl.messages.heads import read_frame
from fsl.messages.step_messages import StepMessage
from fsl.wire.device import line as lines
from fsl.wire.device.line import Line, Uplink
from fsl.wire.device.step_paths import StepPaths
from fsl.wire.steps.step_socket import StepSocket

_DEVICE = contextvars.ContextVar("device")
UNAVAILABLE = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "cut")
ABOVE = 1000  # added to a device's number in a place of its session at the server above its edge
# A third of what devices take elsewhere, so that tests wait less: seconds before a device's next attempt, and at most;
# and seconds for an edge to say why a stream broke.
_PAUSE = (0.03, 0.6)
_STATUS = 0.08
_UNSEEN = 0.1  # seconds until an edge sees that a connection broke, which is after the device's next attempt
_TRIES = 0.2  # seconds for which a device tries to reach an edge again that will not come back


@dataclass(frozen=True)
class At:
    """A place in a device's session: before it says or hears a kind of message, of a step where the kind has steps."""

    device: int
    does: str  # "says", "hears"
    kind: str
    step: int = 0


@dataclass
class Weather:
    """What happens to the connections: each of `cuts` once, and what the edge says passes through `tamper`.

    `lean`: steps have a stream of their own, where cuts happen to them; what is tampered with are gRPC's frames.
    """

    cuts: list[At] = field(default_factory=list)
    tamper: Callable[[At, bytes], bytes] | None = None
    lean: bool = True
    met: list[At] = field(default_factory=list)

    def breaks(self, at: At) -> bool:
        if at in self.cuts and at not in self.met:
            self.met.append(at)
            return True
        return False

    def over(self, monkeypatch) -> "Weather":
        """Over all channels of devices, from now on."""
        monkeypatch.setattr(lines, "_PAUSE", _PAUSE)
        monkeypatch.setattr(lines, "_STATUS", _STATUS)
        stream, channel = Line._stream, Uplink.channel

        async def of_device(line):
            _DEVICE.set(number(line.invitation))
            await stream(line)

        monkeypatch.setattr(Line, "_stream", of_device)
        monkeypatch.setattr(lines, "StepSocket", lambda *given: _Steps(self, *given))
        if not self.lean or self.tamper is not None:
            monkeypatch.setattr(StepPaths, "worth_trying", lambda paths, address: False)
        monkeypatch.setattr(Uplink, "channel", lambda uplink, address: _Channel(channel(uplink, address), self))
        return self


def _tries_no_longer(line: Line) -> None:
    """Of this line alone: edges and the line to the next edge are as patient as their round."""
    line._patience = replace(line._patience, straggler=_TRIES)


def out_of_reach(monkeypatch, at: At, edge: int = 0) -> Weather:
    """The device cannot reach this edge any more from this place of its session on, and soon gives it up."""
    weather, stream = Weather(cuts=[at]).over(monkeypatch), Line._stream

    async def streaming(line):
        if (line.invitation.device, line.invitation.edge) == (at.device, edge):
            if weather.met:
                raise UNAVAILABLE
            _tries_no_longer(line)
        await stream(line)

    monkeypatch.setattr(Line, "_stream", streaming)
    return weather


def loses_its_edge(monkeypatch, after: Callable[[pb.Reply], bool], device: int = 0, edge: int = 0) -> threading.Event:
    """Once it has heard such a reply, the device cannot reach this edge any more; returns whether that is so."""
    stream, tell, gone = Line._stream, Line._tell, threading.Event()

    def heard(line, event):
        tell(line, event)
        message, at = getattr(event, "message", None), (line.invitation.device, line.invitation.edge)
        if at == (device, edge) and message is not None and after(message.reply):
            gone.set()
            raise UNAVAILABLE

    async def streaming(line):
        if (line.invitation.device, line.invitation.edge) == (device, edge):
            if gone.is_set():
                raise UNAVAILABLE
            _tries_no_longer(line)
        await stream(line)

    monkeypatch.setattr(Line, "_tell", heard)
    monkeypatch.setattr(Line, "_stream", streaming)
    return gone


class _Steps(StepSocket):
    def __init__(self, weather, sock, heard, most, ear, box):
        super().__init__(sock, heard, most, ear, box)
        self._weather = weather
        self._device = number(ear.invitation)
        self._cut = False

    def queue(self, message):
        self._cut = self._cut or self._weather.breaks(self._says(message))
        if not self._cut:
            super().queue(message)

    def begin(self):
        if self._cut:
            self._broke(ConnectionError("cut"))
        else:
            super().begin()

    def write(self, message):
        if self._weather.breaks(self._says(message)):
            self._broke(ConnectionError("cut"))
        elif not self._cut:
            super().write(message)

    def _hear(self, message, data, size):
        if self._weather.breaks(place(self._device, "hears", message)):
            raise ConnectionError("cut")
        super()._hear(message, data, size)

    def _says(self, message):
        if isinstance(message, StepMessage):
            return At(self._device, "says", message.kind, message.step)
        return place(self._device, "says", read_frame(message, pb.ToEdge)[0])


def number(invitation):
    return invitation.device + (ABOVE if invitation.top else 0)


def place(device, does, message):
    kind = message.WhichOneof("body")
    body = getattr(message, kind)
    return At(device, does, kind, body.step if kind in ("upload", "reply") else 0)


class _Channel:
    def __init__(self, channel, weather):
        self._channel = channel
        self._weather = weather

    def stream_stream(self, method):
        return lambda: _Call(self._channel.stream_stream(method)(), self._weather)


class _Call:
    def __init__(self, call, weather):
        self._call = call
        self._weather = weather
        self._device = _DEVICE.get()
        self._broken = asyncio.Event()
        for name in ("code", "details", "initial_metadata", "trailing_metadata"):
            setattr(self, name, getattr(call, name))

    async def write(self, data):
        if self._weather.breaks(self._place("says", read_frame(data, pb.ToEdge)[0])):
            self._break()
        else:
            await self._call.write(data)

    async def read(self):
        read, broken = asyncio.ensure_future(self._call.read()), asyncio.ensure_future(self._broken.wait())
        try:
            await asyncio.wait({read, broken}, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.is_set():
                raise self._error()
            data = read.result()
        finally:
            broken.cancel()
            if self._broken.is_set():  # to cancel it would end the call
                read.add_done_callback(lambda read: read.cancelled() or read.exception())
            else:
                read.cancel()
        if data is grpc.aio.EOF:
            return data
        place = self._place("hears", read_frame(data, pb.ToDevice)[0])
        if self._weather.breaks(place):
            self._break()
            raise self._error()
        return data if self._weather.tamper is None else self._weather.tamper(place, data)

    def cancel(self):
        return self._broken.is_set() or self._call.cancel()

    def _place(self, does, message):
        return place(self._device, does, message)

    def _break(self):
        """End it for the device at once, and for the edge after the device has tried to come back."""
        self._broken.set()
        asyncio.get_running_loop().call_later(_UNSEEN, self._call.cancel)

    @staticmethod
    def _error():
        return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "cut")
