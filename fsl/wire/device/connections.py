"""Opens connections to one edge: as many as its devices' streams need, each with at most the door's streams."""

from collections.abc import Callable

import grpc

from fsl.wire.options import Limits

Call = grpc.aio.StreamStreamCall


class Connections:
    """Opens streams as a channel does, over the least busy of its channels; all of it on the network thread."""

    def __init__(self, connect: Callable[[], grpc.aio.Channel], limits: Limits):
        self._connect = connect
        self._most = limits.streams
        self._open: dict[grpc.aio.Channel, int] = {}  # streams

    def stream_stream(self, method: str) -> Callable[[], Call]:
        """Returns a function that begins a stream of this method."""

        def begin() -> Call:
            channel = min(self._open, key=self._open.__getitem__, default=None)
            if channel is None or self._open[channel] >= self._most:
                channel = self._connect()
                self._open[channel] = 0
            call: Call = channel.stream_stream(method)()
            self._open[channel] += 1
            call.add_done_callback(lambda _: self._ended(channel))
            return call

        return begin

    def _ended(self, channel: grpc.aio.Channel) -> None:
        self._open[channel] -= 1

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._open:
            await channel.close()
