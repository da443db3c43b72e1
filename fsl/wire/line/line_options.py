"""Options of both ends of a line."""

from dataclasses import dataclass

from fsl.wire.frame_stream import CHUNK
from fsl.wire.options import Limits, channel_options

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
    """Limits of a cloud's lines.

    `max_bytes` of an answer to work that a node was given, which alone is kept, and `opening_bytes` of a node's first
    frame. `connections` in all; one without a stream ends after `idle_seconds`. `handshakes`: streams at a time that
    have not said who they are, `connection_handshakes` of them over one connection. A node's line is taken away after
    `strays` answers in a row that nobody asked for, or where it came back more than `returns` times within a minute.
    """

    max_bytes: int = 1 << 31
    opening_bytes: int = 4 << 10
    connections: int = 2000
    idle_seconds: float = 60.0
    handshakes: int = 64
    connection_handshakes: int = 4
    strays: int = 100
    returns: int = 60

    def door(self, seconds: float) -> Limits:
        """Returns the limits of strangers, as an edge's door has them."""
        return Limits(
            handshakes=self.handshakes, connection_handshakes=self.connection_handshakes, handshake_seconds=seconds
        )


def line_options(times: LineTimes) -> list[tuple[str, int]]:
    """Returns gRPC's options of both ends."""
    return channel_options(CHUNK, times.keepalive)


def door_options(times: LineTimes, limits: LineLimits) -> list[tuple[str, int]]:
    """Returns gRPC's options of a cloud's door for lines: few streams a connection, no compression."""
    return [
        *line_options(times),
        ("grpc.max_concurrent_streams", 4),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", int(1000 * times.opening)),
        ("grpc.max_connection_idle_ms", int(1000 * limits.idle_seconds)),
        ("grpc.max_metadata_size", 4 << 10),
        ("grpc.absolute_max_metadata_size", 8 << 10),
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]
