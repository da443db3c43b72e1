"""Opens connections to one address: as many as its streams need, each with at most the door's streams."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from fsl.wire.options import Certificates, Limits, channel_credentials, client_options

Call = grpc.aio.StreamStreamCall


@dataclass
class _Connection:
    channel: grpc.aio.Channel
    files: int  # number of the certificate files that it was opened with
    streams: int = 0


class Dialler:
    """Opens one end's gRPC channels, with its certificate files as they are at that moment."""

    def __init__(self, certificates: Certificates | None, limits: Limits) -> None:
        self.limits = limits
        self.pem = None if certificates is None else certificates.device_files()

    @property
    def files(self) -> int:
        """The number of the present certificate files."""
        return 0 if self.pem is None else self.pem.version

    def channel(self, address: str) -> grpc.aio.Channel:
        """Open a channel."""
        options = client_options(self.limits)
        if self.pem is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, channel_credentials(self.pem), options=options)


class Connections:
    """Opens streams as a channel does, over the least busy of its channels; all of it on the network thread.

    Where the certificate files were replaced, a new stream has a new connection, and one of before is closed when its
    last stream has ended.
    """

    def __init__(self, address: str, dialler: Dialler) -> None:
        self._address = address
        self._dialler = dialler
        self._open: list[_Connection] = []
        self._closing: set[asyncio.Task[None]] = set()

    def stream_stream(self, method: str, timeout: float | None = None) -> Callable[[], Call]:
        """Returns a function that begins a stream of this method; it ends after `timeout` seconds."""

        def begin() -> Call:
            files = self._dialler.files
            fresh = [one for one in self._open if one.files == files]
            one = min(fresh, key=lambda one: one.streams, default=None)
            if one is None or one.streams >= self._dialler.limits.streams:
                one = _Connection(self._dialler.channel(self._address), files)
                self._open.append(one)
            self._close_stale(files)
            call: Call = one.channel.stream_stream(method)(timeout=timeout)
            one.streams += 1
            call.add_done_callback(lambda _: self._ended(one))
            return call

        return begin

    def _ended(self, one: _Connection) -> None:
        one.streams -= 1
        self._close_stale(self._dialler.files)

    def _close_stale(self, files: int) -> None:
        for one in [one for one in self._open if one.files != files and not one.streams]:
            self._open.remove(one)
            closing = asyncio.ensure_future(one.channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all channels."""
        for one in self._open:
            await one.channel.close()
        if self._closing:
            await asyncio.wait(self._closing)
