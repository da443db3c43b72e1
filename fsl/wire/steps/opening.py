"""Opens lean streams: connects, shakes hands by TLS, and says to which session a stream belongs."""

import asyncio
import os
import socket
import ssl
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from fsl.errors import WireError

MAGIC = b"fsl steps 1\n"
TICKET_BYTES = 32


async def connect(address: str, context: ssl.SSLContext | None, ticket: bytes) -> socket.socket:
    """Returns a non-blocking socket on which a session's stream has begun; OSError or ssl.SSLError where none can."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    loop = asyncio.get_running_loop()
    error: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, where in await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, where)
        except OSError as reason:
            sock.close()
            error = reason
            continue
        return await _said(sock, context, host, ticket)
    raise error


async def connect_unix(path: Path, ticket: bytes) -> socket.socket:
    """As `connect`, to an edge of the same user on this machine, without TLS: nothing leaves the kernel."""
    if path.lstat().st_uid != os.getuid():
        raise PermissionError(f"{path} is another user's")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(path))
    except OSError:
        sock.close()
        raise
    return await _said(sock, None, "", ticket)


async def _said(sock: socket.socket, context: ssl.SSLContext | None, host: str, ticket: bytes) -> socket.socket:
    try:
        if sock.family != socket.AF_UNIX:
            tune(sock)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            await shake_hands(sock)
        await _send(sock, MAGIC + ticket)
        return sock
    except BaseException:
        sock.close()
        raise


async def shake_hands(sock: ssl.SSLSocket) -> None:
    """Do a socket's TLS handshake."""
    while True:
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            await _ready(sock, write=False)
        except ssl.SSLWantWriteError:
            await _ready(sock, write=True)


async def read_ticket(sock: socket.socket) -> bytes:
    """Read which session a stranger's stream belongs to; WireError for anything else."""
    wanted = len(MAGIC) + TICKET_BYTES
    data = b""
    while len(data) < wanted:
        try:
            more = sock.recv(wanted - len(data))
        except (BlockingIOError, ssl.SSLWantReadError):
            await _ready(sock, write=False)
            continue
        if not more:
            raise WireError("the stream ended before it said whose it is")
        data += more
        if not data.startswith(MAGIC[: len(data)]):
            raise WireError("this is no stream of steps")
    return data[len(MAGIC) :]


def tune(sock: socket.socket, keepalive: float = 20.0) -> None:
    """Have a TCP socket send at once, and end where nothing is heard of the other machine for so many seconds."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(1, int(keepalive))
    options = {"TCP_KEEPIDLE": seconds, "TCP_KEEPINTVL": max(1, seconds // 4), "TCP_KEEPCNT": 2}
    options["TCP_USER_TIMEOUT"] = int(1500 * keepalive)  # milliseconds
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:  # not every system has all of them
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


@cache
def machine() -> bytes:
    """Returns 16 bytes that name this machine's present run, or b"" where the system does not say."""
    with suppress(OSError):
        return sha256(b"fsl" + Path("/proc/sys/kernel/random/boot_id").read_bytes()).digest()[:16]
    return b""


async def _send(sock: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            await _ready(sock, write=True)
        except ssl.SSLWantReadError:
            await _ready(sock, write=False)


async def _ready(sock: socket.socket, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if write else loop.add_reader)(sock, tell)
    try:
        await ready
    finally:
        (loop.remove_writer if write else loop.remove_reader)(sock)
