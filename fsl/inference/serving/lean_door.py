"""The lean door of an edge that serves a model: takes the streams whose tickets the door has given out."""

import asyncio
import logging
import secrets
import socket
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from fsl.errors import ConfigError, WireError
from fsl.inference.serving.asked_stream import AskedStream
from fsl.inference.serving.record_socket import RecordSocket
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.strangers import Strangers
from fsl.wire.options import Limits
from fsl.wire.pem_files import PemFiles
from fsl.wire.steps.opening import TICKET_BYTES, read_ticket, shake_hands, tune
from fsl.wire.tls import TlsContexts

log = logging.getLogger(__name__)
_LISTEN_BACKLOG = 128


class LeanDoor:
    """Listens for lean streams; all of it on the network thread.

    Whoever connects has `limits.handshake_seconds` for TLS and a ticket, in a place among at most `limits.handshakes`
    strangers; a ticket serves once. `most`: bytes of a record that may come.
    """

    def __init__(self, files: PemFiles | None, limits: Limits, most: int) -> None:
        self.port = 0
        self._contexts = None if files is None else TlsContexts(files, server=True)
        self._limits = limits
        self._most = most
        self._strangers = Strangers(limits)
        self._tickets: dict[bytes, AskedStream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: socket.socket | None = None

    async def start(self, listen: str) -> None:
        """Listen at host:port; ConfigError where it cannot."""
        host, _, port = listen.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            server = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_LISTEN_BACKLOG)
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(
                f"lean={listen}: an edge cannot listen there ({error}); questions travel over a port of their own, the "
                "one after listen's unless told: name a free host:port, or None for gRPC alone"
            ) from None
        server.setblocking(False)
        self._server, self.port = server, server.getsockname()[1]
        self._begin(self._accept(server))

    def offer(self, stream: AskedStream) -> bytes:
        """Returns a ticket for a stream."""
        ticket = secrets.token_bytes(TICKET_BYTES)
        self._tickets[ticket] = stream
        return ticket

    def forget(self, stream: AskedStream) -> None:
        """Have a stream's ticket count no more."""
        for ticket in [ticket for ticket, other in self._tickets.items() if other is stream]:
            del self._tickets[ticket]

    async def stop(self) -> None:
        """Take no more streams; those that are open end with their gRPC streams."""
        if self._server is not None:
            self._server.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, where = await loop.sock_accept(server)
            except OSError as error:  # too many open files, most likely: those inside go on
                log.warning("no lean stream is taken: %s", error)
                await asyncio.sleep(0.5)
                continue
            self._begin(self._enter(sock, f"{where[0]}:{where[1]}"))

    async def _enter(self, sock: socket.socket, peer: str) -> None:
        try:
            async with self._strangers.place(peer):
                sock.setblocking(False)
                tune(sock, self._limits.keepalive)
                if self._contexts is not None:
                    context = self._contexts.present()
                    sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                    await shake_hands(sock)
                stream = self._tickets.pop(await read_ticket(sock), None)
            if stream is None or stream.gone:
                raise WireError("its ticket is of no stream at the door")
        except BaseException as error:
            with suppress(OSError):
                sock.close()
            if isinstance(error, Refusal | WireError | OSError):  # ssl.SSLError is an OSError
                log.info("a lean stream from %s was refused: %s", peer, error)
                return
            raise
        stream.carry(RecordSocket(sock, self._most, stream))
