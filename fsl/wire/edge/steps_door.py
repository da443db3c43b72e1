"""The lean door of an edge: takes the streams of steps whose tickets the door has given out."""

import asyncio
import logging
import secrets
import socket
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsl.errors import ConfigError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.session import WireSession
from fsl.wire.edge.session_stream import SessionStream
from fsl.wire.edge.strangers import Strangers
from fsl.wire.options import Limits
from fsl.wire.pem_files import PemFiles
from fsl.wire.steps.opening import TICKET_BYTES, machine, read_ticket, shake_hands, tune
from fsl.wire.steps.step_socket import StepSocket
from fsl.wire.tls import TlsContexts

log = logging.getLogger(__name__)
_LISTEN_BACKLOG = 128
_BACKLOG = 16 << 20  # bytes of replies that a device has not read, at least


class StepsDoor:
    """Listens for lean streams on TCP, and on a Unix socket for devices of this user on this machine.

    Whoever connects has `limits.handshake_seconds` for TLS and its ticket, in a place among at most `limits.handshakes`
    strangers; a ticket serves once, and names a connection that the door has let in. All of it on the network thread.
    """

    def __init__(self, edge: int, files: PemFiles | None, limits: Limits):
        self.edge = edge
        self.port = 0
        self.local: Path | None = None
        self._files = files
        self._limits = limits
        self._strangers = Strangers(limits)
        self._tickets: dict[bytes, tuple[WireSession, SessionStream]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[socket.socket] = []

    async def start(self, listen: str, local: Path | None) -> None:
        """Listen on host:port, and on the file `local`; ConfigError where it cannot."""
        host, _, port = listen.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            server = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_LISTEN_BACKLOG)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"steps-listen={listen}: edge {self.edge} cannot listen there ({error}); steps travel over a port of "
                "their own, the one after listen's unless told: name a free host:port, or none"
            ) from None
        self.port = server.getsockname()[1]
        self._serve(server, None if self._files is None else TlsContexts(self._files, server=True))
        if local is not None:
            self._listen_here(local)

    def _listen_here(self, local: Path) -> None:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.bind(str(local))
            local.chmod(0o600)
            server.listen(_LISTEN_BACKLOG)
        except OSError as error:
            server.close()
            log.warning("edge %d: devices on this machine use TCP: %s: %s", self.edge, local, error)
            return
        self.local = local
        self._serve(server, None)

    def _serve(self, server: socket.socket, contexts: TlsContexts | None) -> None:
        server.setblocking(False)
        self._servers.append(server)
        self._begin(self._accept(server, contexts))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def offer(self, session: WireSession, stream: SessionStream, opened: pb.Opened) -> None:
        """Offer a connection a lean stream of its own."""
        ticket = secrets.token_bytes(TICKET_BYTES)
        self._tickets[ticket] = session, stream
        stream.ended.add_done_callback(lambda _: self._tickets.pop(ticket, None))
        opened.ticket, opened.port, opened.machine = ticket, self.port, machine()
        opened.local = "" if self.local is None else self.local.name

    async def close(self) -> None:
        """End it; streams that sessions carry are theirs."""
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.local is not None:
            self.local.unlink(missing_ok=True)

    async def _accept(self, server: socket.socket, contexts: TlsContexts | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, where = await loop.sock_accept(server)
            except OSError as error:  # too many open files, most likely: those inside go on
                log.warning("edge %d takes no stream of steps: %s", self.edge, error)
                await asyncio.sleep(0.5)
                continue
            peer = "unix" if server.family == socket.AF_UNIX else f"{where[0]}:{where[1]}"
            self._begin(self._enter(sock, peer, contexts))

    async def _enter(self, sock: socket.socket, peer: str, contexts: TlsContexts | None) -> None:
        try:
            async with self._strangers.place(peer):
                sock.setblocking(False)
                if sock.family != socket.AF_UNIX:
                    tune(sock, self._limits.keepalive)
                if contexts is not None:
                    sock = contexts.present().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                    await shake_hands(sock)
                entry = self._tickets.pop(await read_ticket(sock), None)
            if entry is None:
                raise WireError("its ticket is of no connection at the door")
        except BaseException as error:
            with suppress(OSError):
                sock.close()
            if isinstance(error, Refusal | WireError | OSError):  # ssl.SSLError is an OSError
                log.info("edge %d refused a stream of steps from %s: %s", self.edge, peer, error)
                return
            raise
        session, stream = entry
        # A device that goes on without hearing its replies would fill this edge's memory with them.
        backlog = max(_BACKLOG, self._limits.queue * session.most)
        session.carry(stream, StepSocket(sock, pb.ToEdge, session.most, session, session.box, backlog))
