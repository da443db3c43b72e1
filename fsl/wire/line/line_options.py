"""Options of both ends of a line."""

from dataclasses import dataclass

from fsl.wire.frame_stream import CHUNK
from fsl.wire.options import channel_options

LINE_METHOD = "/fsl.wire.Cloud/Line"


@dataclass(frozen=True)
class LineTimes:
    """Seconds of a line, for both ends.

    `keepalive`: after so many silent seconds gRPC pings, and half as many without an answer end the stream. `lost`: a
    stream that broke may come back within so many; then the node drops its round, and the cloud its answers.
    `opening`: for a node to say who it is, and for a cloud to wait for an offered line.
    """

    keepalive: float = 4.0
    lost: float = 10.0
    opening: float = 10.0


@dataclass(frozen=True)
class LineLimits:
    """Limits of a cloud's lines: bytes of a frame, bytes before a node has said who it is, streams, connections."""

    max_bytes: int = 1 << 31
    opening_bytes: int = 4 << 10
    connections: int = 2000
    handshakes: int = 64  # strangers at a time


def line_options(times: LineTimes) -> list[tuple[str, int]]:
    """Returns gRPC's options of both ends."""
    return channel_options(CHUNK, times.keepalive)
