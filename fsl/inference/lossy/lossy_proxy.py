"""Stands between a device and an edge over UDP, and loses packets as a channel does."""

import heapq
import socket
import threading
import time

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.lossy.datagrams import MOST_BYTES
from fsl.inference.lossy.udp_edge import bound
from fsl.packets import PacketChannel

_DRAWN = 4096  # packets whose fate is drawn at once
_IDLE = 0.2  # seconds after which a thread looks whether it should end


class LossyProxy:
    """Passes datagrams on between devices and an edge on this machine, and loses some of those that go up.

    `channel` says which are lost, and by how much each is late; a burst goes on from one sample to the next, as time
    does on a link. Answers go down unharmed, unless `down` is given. Draws follow from `seed`.
    """

    @checks_types("proxy.")
    def __init__(self, edge: str, channel: PacketChannel, *, down: PacketChannel | None = None, seed: int = 0) -> None:
        host, _, port = edge.rpartition(":")
        if not port.isdecimal():
            raise ConfigError(f"edge={edge}: give host:port, as in 127.0.0.1:9000")
        self._edge = host.strip("[]"), int(port)
        self._ways = {"up": _Fates(channel, seed, "up"), "down": _Fates(down or PacketChannel(), seed, "down")}
        self._front = bound(f"{host}:0")
        name, own = self._front.getsockname()[:2]
        self.address = f"[{name}]:{own}" if ":" in name else f"{name}:{own}"
        self._backs: dict[tuple[str, int], socket.socket] = {}
        self._late: list[tuple[float, int, socket.socket, bytes, tuple[str, int]]] = []
        self._lock, self._ending = threading.Lock(), threading.Event()
        self._count = 0
        self._threads = [threading.Thread(target=self._up, name="proxy-up", daemon=True)]
        self._threads += [threading.Thread(target=self._deliver, name="proxy-late", daemon=True)]
        for thread in self._threads:
            thread.start()

    @property
    def lost(self) -> int:
        """Packets that went up and were lost."""
        return self._ways["up"].lost

    @property
    def seen(self) -> int:
        """Packets that went up."""
        return self._ways["up"].seen

    def close(self) -> None:
        """End all threads, and close all sockets."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        for own in (self._front, *self._backs.values()):
            own.close()

    def _up(self) -> None:
        self._front.settimeout(_IDLE)
        while not self._ending.is_set():
            try:
                data, device = self._front.recvfrom(MOST_BYTES + 1)
            except OSError:
                continue
            device = device[:2]
            if device not in self._backs:
                self._backs[device] = socket.socket(self._front.family, socket.SOCK_DGRAM)
                self._backs[device].bind((self._front.getsockname()[0], 0))
                thread = threading.Thread(target=self._down, args=(device,), name="proxy-down", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._pass("up", self._backs[device], data, self._edge)

    def _down(self, device: tuple[str, int]) -> None:
        back = self._backs[device]
        back.settimeout(_IDLE)
        while not self._ending.is_set():
            try:
                data, sender = back.recvfrom(MOST_BYTES + 1)
            except OSError:
                continue
            if sender[:2] == self._edge:
                self._pass("down", self._front, data, device)

    def _pass(self, way: str, through: socket.socket, data: bytes, to: tuple[str, int]) -> None:
        late = self._ways[way].next()
        if late is None:
            return
        if not late:
            _send(through, data, to)
            return
        with self._lock:
            self._count += 1
            heapq.heappush(self._late, (time.monotonic() + late, self._count, through, data, to))

    def _deliver(self) -> None:
        """Send what is late when its time has come."""
        while not self._ending.wait(0.0005 if self._late else _IDLE / 10):
            while True:
                with self._lock:
                    if not self._late or self._late[0][0] > time.monotonic():
                        break
                    _, _, through, data, to = heapq.heappop(self._late)
                _send(through, data, to)


class _Fates:
    """What becomes of packet after packet on a channel."""

    def __init__(self, channel: PacketChannel, seed: int, way: str) -> None:
        self._channel = channel
        self._generator = seeds.torch_generator(seed, "lossy-proxy", segment=way)
        self._drawn: list[float] = []
        self.seen = self.lost = 0

    def next(self) -> float | None:
        """Returns by how many seconds the next packet is late; None where it is lost."""
        if not self._drawn:
            self._drawn = self._channel.arrivals(1, _DRAWN, 0.0, self._generator)[0].flip(0).tolist()
        late = self._drawn.pop()
        self.seen += 1
        if late == float("inf"):
            self.lost += 1
            return None
        return late


def _send(through: socket.socket, data: bytes, to: tuple[str, int]) -> None:
    try:
        through.sendto(data, to)
    except OSError:  # nobody listens there any more: lost
        return
