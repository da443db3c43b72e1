"""How devices of a separable network find each other: each listens, and opens a stream to those of lower number."""

import asyncio
import logging
import socket
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fsl.errors import ConfigError, FslError, RunError, WireError
from fsl.inference.separable.group_records import GroupStages
from fsl.inference.separable.group_stream import GroupEar, GroupStream
from fsl.inference.separable.group_terms import GroupTerms
from fsl.quoting import one_line
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.strangers import Strangers
from fsl.wire.options import Limits
from fsl.wire.steps.opening import connect, read_ticket, shake_hands, tune
from fsl.wire.tls import TlsContexts

log = logging.getLogger(__name__)
_AGAIN = 0.1  # seconds between two tries to reach a device that does not listen yet
_LISTEN_BACKLOG = 64


class GroupDoor:
    """Listens for devices of higher number and reaches those of lower; all of it on the network thread."""

    def __init__(self, terms: GroupTerms, stages: GroupStages, rows: int, ear: GroupEar, limits: Limits) -> None:
        self.streams: dict[int, GroupStream] = {}
        self._terms, self._stages, self._rows, self._ear, self._limits = terms, stages, rows, ear, limits
        self._own: TlsContexts | None = None
        self._others: TlsContexts | None = None
        self._strangers = Strangers(limits)
        self._came = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: socket.socket | None = None
        self._refused = ""
        self._ended: FslError | None = None

    async def listen(self, address: str, own: TlsContexts | None, others: TlsContexts | None) -> str:
        """Listen at host:port; returns the address. ConfigError where it cannot. `own`, `others`: for TLS."""
        self._own, self._others = own, others
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            server = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_LISTEN_BACKLOG)
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(f"listen={address}: this device cannot listen there ({error}); give a free one") from None
        server.setblocking(False)
        self._server = server
        self._begin(self._accept(server))
        return f"{host}:{server.getsockname()[1]}"

    async def connect(self, peers: Mapping[int, str], seconds: float) -> None:
        """Open streams to devices of lower number, and wait for those of higher; RunError for one that is absent."""
        deadline = asyncio.get_running_loop().time() + seconds
        for peer in range(self._terms.device):
            await self._reach(peer, peers[peer], deadline, seconds)
        wanted = set(range(self._terms.devices)) - {self._terms.device}
        try:
            async with asyncio.timeout_at(deadline):
                while wanted - self.streams.keys():
                    if self._ended is not None:
                        raise self._ended
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            missing = min(wanted - self.streams.keys())
            why = f" (refused: {self._refused})" if self._refused else ""
            raise RunError(
                f"device {missing} did not come within {seconds:g} s{why}; start it with this one's address"
            ) from None

    def end_waiting(self, why: FslError) -> None:
        """End the wait for other devices, where one has ended meanwhile."""
        self._ended = why
        self._came.set()

    def send(self, receivers: Sequence[int], data: bytes) -> None:
        """Send a record to devices."""
        for receiver in receivers:
            if receiver in self.streams:
                self.streams[receiver].write(data)

    async def stop(self, reason: str) -> None:
        """End all streams, saying why (an empty reason: in order), and take no more."""
        if self._server is not None:
            self._server.close()
        for stream in self.streams.values():
            stream.end(reason)
        self.streams.clear()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Streams to devices of lower number.

    async def _reach(self, peer: int, address: str, deadline: float, seconds: float) -> None:
        reason = "it does not answer"
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    context = None if self._others is None else self._others.present()
                    sock = await connect(address, context, bytes.fromhex(self._terms.digest))
                break
            except TimeoutError:
                raise RunError(
                    f"device {peer} at {address} cannot be reached within {seconds:g} s ({reason}); start it, or give "
                    "its address"
                ) from None
            except OSError as error:  # ssl.SSLError is one
                reason = one_line(str(error), 120)
                await asyncio.sleep(min(_AGAIN, max(0.0, deadline - asyncio.get_running_loop().time())))
        stream = GroupStream(sock, self._stages, self._rows, self._ear)
        there = f"device {peer} at {address}"
        try:
            stream.write(self._terms.greeting())
            async with asyncio.timeout(self._limits.handshake_seconds):
                said = await stream.greeting
            self._terms.check(said, there)
            if said.device != peer:
                raise WireError(f"{there} says that it is device {said.device}; give each device's own address")
        except BaseException as error:
            stream.end(one_line(str(error), 300) or "it did not say in time who it is")
            if isinstance(error, TimeoutError):
                raise RunError(f"{there} takes the stream and says nothing; see whether it is a device") from None
            if isinstance(error, WireError) and there not in str(error):
                raise type(error)(f"{there}: {error}") from None
            raise
        self._opened(peer, stream)

    # Streams of devices of higher number.

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, where = await loop.sock_accept(server)
            except OSError as error:  # too many open files, most likely: those inside go on
                log.warning("no stream of a device is taken: %s", error)
                await asyncio.sleep(0.5)
                continue
            self._begin(self._enter(sock, f"{where[0]}:{where[1]}"))

    async def _enter(self, sock: socket.socket, peer: str) -> None:
        stream: GroupStream | None = None
        try:
            async with self._strangers.place(peer):
                sock.setblocking(False)
                tune(sock, self._limits.keepalive)
                if self._own is not None:
                    context = self._own.present()
                    sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                    await shake_hands(sock)
                ticket = await read_ticket(sock)
                stream = GroupStream(sock, self._stages, self._rows, self._ear)
                if ticket != bytes.fromhex(self._terms.digest):
                    raise WireError(
                        f"device {self._terms.device} has another network than {ticket.hex()[:12]}: weights or gates "
                        "differ; give both folders of one save"
                    )
                said = await stream.greeting
                self._terms.check(said, f"device {said.device} at {peer}")
                if said.device <= self._terms.device or said.device in self.streams:
                    raise WireError(f"device {said.device} is here already, or is to be reached by this one")
                stream.write(self._terms.greeting())
                self._opened(said.device, stream)
        except BaseException as error:
            if stream is not None:
                stream.end(one_line(str(error), 300) or type(error).__name__)
            with suppress(OSError):
                sock.close()
            if isinstance(error, Refusal | WireError | OSError):
                self._refused = one_line(str(error), 200)
                log.warning("a stream from %s was refused: %s", peer, self._refused)
                return
            raise

    def _opened(self, peer: int, stream: GroupStream) -> None:
        self.streams[peer] = stream
        stream.is_with(peer)
        self._came.set()
