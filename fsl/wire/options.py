"""Options of both ends of the data plane: method names, patience, limits, certificates, gRPC's settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fsl.errors import ConfigError
from fsl.wire.frame_stream import CHUNK
from fsl.wire.pem_files import Pem, PemFiles

METHOD = "/fsl.wire.Edge/Train"
PEER_METHOD = "/fsl.wire.Edge/Peer"
INFER_METHOD = "/fsl.wire.Edge/Infer"
PROFILE_METHOD = "/fsl.wire.Edge/Profile"
KEEPALIVE = 20.0  # seconds of silence after which gRPC pings a connection


@dataclass(frozen=True)
class Patience:
    """Seconds that devices and edges wait for each other.

    `join`: for a device or its edge to appear in a round. `straggler`: an edge waits so long for the next message of a
    device that others wait for, and then loses it. `answer`: a device waits so long for its edge's next message.
    """

    join: float = 120.0
    straggler: float = 60.0
    answer: float = 600.0

    def __post_init__(self) -> None:
        for name in ("join", "straggler", "answer"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: it is a number of seconds above 0")


@dataclass(frozen=True)
class Limits:
    """Limits of an edge: bytes of a frame, unserved uploads of a session, strangers at the door.

    Before a session is open: `opening_bytes` of a message, `handshakes` at a time in all and `connection_handshakes`
    over one connection, each for `handshake_seconds`. `streams` of one connection (a node that needs more opens
    another), and `connections` in all; the edge ends one without a stream after `idle_seconds`. `send_seconds`: for a
    session's last messages to leave. `keepalive`: after so many silent seconds gRPC pings a connection, and gives it up
    after half as many without an answer.
    """

    max_message_bytes: int = 64 << 20
    queue: int = 4
    handshakes: int = 64
    connection_handshakes: int = 16
    handshake_seconds: float = 10.0
    opening_bytes: int = 64 << 10
    streams: int = 64
    connections: int = 1000
    idle_seconds: float = 300.0
    send_seconds: float = 60.0
    keepalive: float = KEEPALIVE


@dataclass(frozen=True)
class Certificates:
    """PEM files of one end: its certificate and key, and the authority `ca` that it checks the other end against.

    An edge needs the first two, and asks devices for certificates (mutual TLS) where it has `ca`. A device needs
    `ca`, and the other two where its edge asks for them.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def edge_files(self) -> PemFiles:
        """Returns an edge's files, read again when they are replaced; ConfigError for those that will not do."""
        if self.certificate is None or self.key is None:
            raise ConfigError(
                "an edge needs cert and cert-key in its node configuration; fsl-certs makes them for trying "
                "(insecure=true does without TLS)"
            )
        return PemFiles(self.ca, self.certificate, self.key, ("client-ca", "cert", "cert-key"))

    def device_files(self) -> PemFiles:
        """Returns a device's files, as `edge_files`; without `ca` the machine's own authorities count."""
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("cert and cert-key belong together; give both in the node configuration, or none")
        return PemFiles(self.ca, self.certificate, self.key)

    def server(self) -> grpc.ServerCredentials:
        """Returns an edge's gRPC credentials: each new connection is checked by the files as they are then."""
        return server_credentials(self.edge_files())


def server_credentials(files: PemFiles) -> grpc.ServerCredentials:
    """Returns gRPC credentials that follow an edge's files."""
    pem, told = files.present()

    def configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
        assert pem.key is not None  # as `edge_files` has made sure
        assert pem.certificate is not None
        return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], root_certificates=pem.ca)

    def fetch() -> Any:  # gRPC takes None for "as before"
        nonlocal told  # gRPC asks on one thread after the other
        pem, version = files.present()
        if version == told:
            return None
        told = version
        return configuration(pem)

    return grpc.dynamic_ssl_server_credentials(
        configuration(pem), fetch, require_client_authentication=pem.ca is not None
    )


def channel_credentials(files: PemFiles) -> grpc.ChannelCredentials:
    """Returns gRPC credentials of a connection that begins now."""
    pem, _ = files.present()
    return grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate)


def channel_options(max_bytes: int, keepalive: float = KEEPALIVE) -> list[tuple[str, int]]:
    """Returns the gRPC options that both ends share.

    `keepalive_timeout_ms` alone is no limit: gRPC ends a connection for a ping without an answer after
    `ping_timeout_ms`, a minute by default.
    """
    asked, answered = int(1000 * keepalive), int(1000 * keepalive / 2)
    return [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", max_bytes),
        ("grpc.keepalive_time_ms", asked),
        ("grpc.keepalive_timeout_ms", answered),
        ("grpc.http2.ping_timeout_ms", answered),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", answered),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", answered),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.so_reuseport", 0),
    ]


# A window of 64 KiB a stream bounds what has come and nobody reads; it grows only for the message that is being read.
# gRPC's default grows with the link, to 8 MB a stream. Small windows also let pings through on a slow link.
_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10)]


def client_options(limits: Limits) -> list[tuple[str, int]]:
    """Returns gRPC's options of a connection to an edge's door, which no other channel of this process shares."""
    return [*channel_options(CHUNK, limits.keepalive), *_WINDOW, ("grpc.use_local_subchannel_pool", 1)]


def server_options(limits: Limits) -> list[tuple[str, int]]:
    """Returns gRPC's options of an edge's door: small messages, few streams a connection, no compression."""
    return [
        *channel_options(CHUNK, limits.keepalive),
        *_WINDOW,
        ("grpc.max_concurrent_streams", limits.streams),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", int(1000 * limits.handshake_seconds)),
        ("grpc.max_connection_idle_ms", int(1000 * limits.idle_seconds)),
        ("grpc.max_metadata_size", 4 << 10),
        ("grpc.absolute_max_metadata_size", 8 << 10),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # bit 0 is "no compression"
    ]
