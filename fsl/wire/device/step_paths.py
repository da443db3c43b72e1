"""How a device's steps reach its edge: over a Unix socket, TCP, or the door's gRPC stream where neither opens."""

import asyncio
import logging
import socket
import ssl
import time
from pathlib import Path
from typing import Literal

from fsl.messages import messages_pb2 as pb
from fsl.quoting import one_line
from fsl.wire.pem_files import PemFiles
from fsl.wire.steps.opening import connect, connect_unix, machine
from fsl.wire.tls import TlsContexts

log = logging.getLogger(__name__)
Steps = Literal["auto", "tcp", "grpc"]
_PATIENCE = 5.0  # seconds for a lean stream to open
_AGAIN = 300.0  # seconds after which an edge whose lean door did not open is tried anew


class StepPaths:
    """Opens lean streams, on the network thread. `here`: the folder of this user's Unix sockets; None: not by these.

    `steps`: "auto" takes a Unix socket to an edge on this machine, and TCP elsewhere; "tcp" and "grpc" that alone.
    """

    def __init__(self, files: PemFiles | None, steps: Steps = "auto", here: Path | None = None):
        self.wanted = steps != "grpc"
        self._contexts = None if files is None else TlsContexts(files, server=False)
        self._here = here if steps == "auto" else None
        self._closed: dict[str, float] = {}  # by edge's address, until when it is not tried

    def worth_trying(self, address: str) -> bool:
        """Returns whether a lean stream to an edge is to be asked for."""
        return self.wanted and time.monotonic() >= self._closed.get(address, 0.0)

    async def open(self, address: str, opened: pb.Opened) -> socket.socket | None:
        """Open the stream that an edge offers; None where that fails, which the log tells once for a while."""
        if self._here is not None and opened.local and opened.machine and opened.machine == machine():
            path = self._here / Path(opened.local).name
            try:
                async with asyncio.timeout(_PATIENCE):
                    return await connect_unix(path, opened.ticket)
            except (OSError, TimeoutError) as error:  # another user's edge, or one in a container
                log.debug("no Unix socket to %s: %s", address, error)
        host = address.rpartition(":")[0]
        try:
            async with asyncio.timeout(_PATIENCE):
                return await connect(f"{host}:{opened.port}", self._tls(), opened.ticket)
        except (OSError, TimeoutError) as error:
            self._closed[address] = time.monotonic() + _AGAIN
            log.warning(
                "the edge at %s takes steps at port %d, which cannot be reached (%s): gRPC carries them, more slowly",
                *(address, opened.port, one_line(str(error), 200) or type(error).__name__),
            )
            return None

    def _tls(self) -> ssl.SSLContext | None:
        return None if self._contexts is None else self._contexts.present()
