"""A gRPC channel for devices whose streams break, or say other things, where a test wants it."""

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from fsl.messages import messages_pb2 as pb
from fsl.messages.heads import read_frame
from fsl.wire.device.line import Line, Uplink

_DEVICE = contextvars.ContextVar("device")


@dataclass(frozen=True)
class At:
    """A place in a device's session: before it says or hears a kind of message, of a step where the kind has steps."""

    device: int
    does: str  # "says", "hears"
    kind: str
    step: int = 0


@dataclass
class Weather:
    """What happens to the streams: each of `cuts` once, and what the edge says passes through `tamper`."""

    cuts: list[At] = field(default_factory=list)
    tamper: Callable[[At, bytes], bytes] = lambda at, data: data
    met: list[At] = field(default_factory=list)

    def breaks(self, at: At) -> bool:
        if at in self.cuts and at not in self.met:
            self.met.append(at)
            return True
        return False

    def over(self, monkeypatch) -> "Weather":
        """Over all channels of devices, from now on."""
        stream, channel = Line._stream, Uplink.channel

        async def of_device(line):
            _DEVICE.set(line.invitation.device)
            await stream(line)

        monkeypatch.setattr(Line, "_stream", of_device)
        monkeypatch.setattr(Uplink, "channel", lambda uplink, address: _Channel(channel(uplink, address), self))
        return self


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
        self._broken = False
        for name in ("code", "details", "initial_metadata", "trailing_metadata"):
            setattr(self, name, getattr(call, name))

    async def write(self, data):
        if self._weather.breaks(self._place("says", read_frame(data, pb.ToEdge)[0])):
            self._break()
        else:
            await self._call.write(data)

    async def read(self):
        try:
            data = await self._call.read()
        except asyncio.CancelledError:
            if not self._broken:
                raise
            data = grpc.aio.EOF
        if data is grpc.aio.EOF:
            if self._broken:
                raise self._error()
            return data
        place = self._place("hears", read_frame(data, pb.ToDevice)[0])
        if self._weather.breaks(place):
            self._break()
            raise self._error()
        return self._weather.tamper(place, data)

    def cancel(self):
        return self._call.cancel()

    def _place(self, does, message):
        kind = message.WhichOneof("body")
        body = getattr(message, kind)
        return At(self._device, does, kind, body.step if kind in ("upload", "reply") else 0)

    def _break(self):
        self._broken = True
        self._call.cancel()

    @staticmethod
    def _error():
        return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "cut")
