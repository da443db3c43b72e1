"""What both ends of the data plane must know: where, by which certificates, and how patient they are."""

import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from fsl.errors import ConfigError
from fsl.private_files import read_private

METHOD = "/fsl.wire.Edge/Train"
PEER_METHOD = "/fsl.wire.Edge/Peer"
KEEPALIVE = 20.0  # seconds after which a silent connection is asked whether it is still there


@dataclass(frozen=True)
class Patience:
    """How long who waits for whom, in seconds.

    `join`: for a device or its edge to appear in a round. `straggler`: for the next message of a device that others
    wait for; who exceeds it is lost for the round. `answer`: for an edge's next message, whatever the others do.
    """

    join: float = 120.0
    straggler: float = 60.0
    answer: float = 600.0

    def __post_init__(self) -> None:
        for name in ("join", "straggler", "answer"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: it is a number of seconds above 0")


class Deadline:
    """A round's: it passes `seconds` after now, and a last time after as long again."""

    def __init__(self, seconds: float, grace: float = 0.0):
        self.seconds = seconds
        now = time.monotonic() + grace  # whoever goes by another's word waits for it a little longer
        self._ends = [("first", now + seconds), ("last", now + 2 * seconds)]

    @property
    def reason(self) -> str:
        """What is said of who is lost by it."""
        return f"it had not finished at the round's deadline of {self.seconds:g} s"

    def left(self) -> float:
        """Seconds until it passes the next time; 0 where it has."""
        return max(0.0, self._ends[0][1] - time.monotonic()) if self._ends else 0.0

    def passed(self) -> str:
        """Which time it has passed since this was asked, "first" or "last"; nothing where it has not."""
        found = ""
        while self._ends and self._ends[0][1] <= time.monotonic():
            found = self._ends.pop(0)[0]
        return found


@dataclass(frozen=True)
class Limits:
    """What an edge puts up with: bytes of a frame, unserved uploads of a session, strangers at the door."""

    max_message_bytes: int = 64 << 20
    queue: int = 4
    handshakes: int = 256
    handshake_seconds: float = 10.0


@dataclass(frozen=True)
class Certificates:
    """PEM files: one's own certificate and key, and the authority that the other end is checked against.

    An edge needs the first two, and asks devices for certificates (mutual TLS) where it has `ca`. A device needs
    `ca`, and the other two where its edge asks for them.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def server(self) -> grpc.ServerCredentials:
        """An edge's credentials."""
        if self.certificate is None or self.key is None:
            raise ConfigError(
                "an edge needs cert and cert-key in its node configuration; fsl-certs makes them for trying "
                "(insecure=true does without TLS)"
            )
        pair = (read_private("cert-key", self.key), _read("cert", self.certificate))
        ca = None if self.ca is None else _read("client-ca", self.ca)
        return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)

    def channel(self) -> grpc.ChannelCredentials:
        """A device's credentials; without `ca` the machine's own authorities count."""
        ca = None if self.ca is None else _read("ca", self.ca)
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("cert and cert-key belong together; give both in the node configuration, or none")
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(ca)
        return grpc.ssl_channel_credentials(ca, read_private("cert-key", self.key), _read("cert", self.certificate))


def channel_options(max_bytes: int) -> list[tuple[str, int]]:
    """gRPC's options, the same at both ends."""
    return [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", max_bytes),
        ("grpc.keepalive_time_ms", int(1000 * KEEPALIVE)),
        ("grpc.keepalive_timeout_ms", int(1000 * KEEPALIVE / 2)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", int(1000 * KEEPALIVE / 2)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(1000 * KEEPALIVE / 2)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.so_reuseport", 0),
    ]


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}={path}: it cannot be read ({error.strerror}); name a PEM file") from None
