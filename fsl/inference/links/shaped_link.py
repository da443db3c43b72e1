"""A TCP proxy on loopback that is as slow as a link: its rate follows a trace, and each byte is late by a delay."""

import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.links.byte_pump import BytePump
from fsl.inference.links.link_schedule import LinkSchedule
from fsl.inference.planning import RateTrace

_IDLE = 0.2  # seconds after which a thread looks whether it should end
_CONNECT = 5.0  # seconds for the edge to be reached
_WINDOW = 32 << 10  # bytes that wait in front of the link, before whoever sends has to wait
_HOSTS = [f"127.0.0.{number}" for number in range(2, 255)]


class ShapedLink:
    """Carries connections between devices and the ports of one edge on this machine; a context manager.

    `edge`: host:port; several of them with the same host where the edge has more than one port, as `InferenceEdge` has
    one for gRPC and one for lean streams. `trace`: Mbit/s up, and down as well unless `down` is given; all connections
    share them. `delay`: seconds that each byte is on its way beside, in one direction. A rate of 0 stalls.

    `address` is where devices find the edge's first port: at 127.0.0.1 and any port where there is one, and else at a
    loopback address of the link's own with the edge's ports, since an edge tells its devices a port and no address.
    ConfigError where no such address is to be had (systems other than Linux have only 127.0.0.1 by themselves).
    """

    @checks_types("link.")
    def __init__(
        self,
        edge: str | Sequence[str],
        trace: RateTrace,
        *,
        down: RateTrace | None = None,
        delay: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= delay < math.inf:
            raise ConfigError(f"link.delay={delay}: give finite seconds of at least 0")
        self._targets = [_target(one) for one in ([edge] if isinstance(edge, str) else edge)]
        if not self._targets or len({host for host, _ in self._targets}) > 1:
            raise ConfigError(f"link.edge={edge!r}: give host:port of one edge, or several of its ports at one host")
        began = clock()
        self.up, self.down = LinkSchedule(trace, began), LinkSchedule(trace if down is None else down, began)
        self._delay, self._clock = delay, clock
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._open: list[tuple[socket.socket, socket.socket, BytePump, BytePump]] = []
        fronts = _listening([port for _, port in self._targets])
        host, port = fronts[0].getsockname()
        self.address = f"{host}:{port}"
        self._threads = [
            threading.Thread(target=self._accept, args=pair, name="link-accept", daemon=True)
            for pair in zip(fronts, self._targets, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def mbit(self) -> float:
        """The rate up of now."""
        return self.up.mbit(self._clock())

    def restart(self) -> None:
        """Begin the traces anew, at second 0; what is on its way arrives as before."""
        now = self._clock()
        self.up.restart(now)
        self.down.restart(now)

    def close(self) -> None:
        """End all connections and threads, and take no more."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        with self._lock:
            for front, back, *pumps in self._open:
                _shut(front, back)
                for pump in pumps:
                    pump.join()
                front.close()
                back.close()
            self._open.clear()

    def __enter__(self) -> "ShapedLink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self, server: socket.socket, target: tuple[str, int]) -> None:
        server.settimeout(_IDLE)
        with server:
            while not self._ending.is_set():
                self._forget()
                try:
                    front, _ = server.accept()
                except OSError:  # nobody has come
                    continue
                try:
                    back = socket.create_connection(target, timeout=_CONNECT)
                except OSError:  # whoever came hears that the edge is not there
                    front.close()
                    continue
                self._carry(front, back)

    def _carry(self, front: socket.socket, back: socket.socket) -> None:
        for one in (front, back):
            one.settimeout(_CONNECT)  # every read and write comes after a look whether it would block
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def pump(source: socket.socket, sink: socket.socket, schedule: LinkSchedule) -> BytePump:
            return BytePump(source, sink, schedule, self._delay, self._clock, self._ending)

        with self._lock:
            self._open.append((front, back, pump(front, back, self.up), pump(back, front, self.down)))

    def _forget(self) -> None:
        """Close the sockets of connections that have ended in both directions."""
        with self._lock:
            done = [one for one in self._open if one[2].is_done and one[3].is_done]
            self._open = [one for one in self._open if one not in done]
        for front, back, *_ in done:
            front.close()
            back.close()


def _target(edge: str) -> tuple[str, int]:
    host, _, port = edge.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"link.edge={edge}: give host:port, as in 127.0.0.1:9090")
    return host.strip("[]"), int(port)


def _listening(ports: Sequence[int]) -> list[socket.socket]:
    """Returns a socket that listens for each port: any free one for one, else these at an address of their own."""
    hosts, wanted = (["127.0.0.1"], [0]) if len(ports) == 1 else (_HOSTS, ports)
    reason: OSError = OSError("no address is left")
    for host in hosts:
        found: list[socket.socket] = []
        try:
            for port in wanted:
                found.append(_server(host, port))
            return found
        except OSError as error:
            reason = error
            for one in found:
                one.close()
    raise ConfigError(
        f"link: it cannot listen at 127.0.0.2 or any such address with ports {', '.join(map(str, ports))} "
        f"({reason.strerror or reason}); give it one port, that of gRPC, and devices lean=False"
    )


def _server(host: str, port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW)  # those that it accepts have the same
        server.bind((host, port))
        server.listen()
        return server
    except OSError:
        server.close()
        raise


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
