"""An edge that computes from whatever packets of a sample have come."""

import logging
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fsl.argument_types import checks_types
from fsl.codecs.codec import Codec
from fsl.codecs.identity import Identity
from fsl.errors import ConfigError, FslError, WireError
from fsl.inference.lossy.datagrams import MOST_BYTES, OVERHEAD, Datagram, Seal
from fsl.inference.lossy.packed_values import PackedValues, packed_at
from fsl.inference.split_points import OUTPUT, SplitPoints
from fsl.messages.frames import tensor_bytes
from fsl.packets import Packing, Reception

log = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_IDLE = 0.2  # seconds after which the thread looks whether it should end
_SHORTEST = 1e-4  # seconds that it waits for a datagram
_AT_ONCE = 4096  # datagrams that it takes before it looks which samples are due
_BUFFER = 4 << 20  # bytes that the kernel may keep for it

Sender = tuple[str, int]


@dataclass
class _Opened:
    """A sample of which packets have come; `due`: when the edge goes on without the others."""

    point: int
    due: float
    beside: bytes
    bodies: dict[int, bytes] = field(default_factory=dict)


@dataclass
class UdpCounts:
    """What an edge over UDP has seen: datagrams by what became of them, and samples."""

    packets: int = 0
    late: int = 0  # of samples that were answered already
    refused: int = 0
    answered: int = 0
    failed: int = 0  # samples of which no outputs could be computed
    dropped: int = 0  # samples that went for newer ones


class UdpEdge:
    """Serves a model's samples over UDP at `address` (host:port; port 0: any free one).

    A sample is answered as soon as `reception` says, from the packets that are there by then. `codec` makes the codec
    of values, and `packing` says which value is in which packet: both as at the device. `loss`: what
    `reception.rescale="known"` divides by. `key`: see `Seal`; without one the address must be loopback. `samples`: so
    many may be incomplete at a time; the oldest goes. Answers are sent `copies` times, since they get lost as well.
    One thread, which `close` ends.
    """

    @checks_types("edge.")
    def __init__(
        self,
        points: SplitPoints,
        address: str,
        *,
        codec: Callable[[], Codec] = Identity,
        packing: Packing | None = None,
        reception: Reception | None = None,
        loss: float = 0.0,
        key: bytes | None = None,
        samples: int = 256,
        copies: int = 1,
    ) -> None:
        self._points, self._reception, self._loss = points, reception or Reception(waiting=0.05), loss
        if self._reception.waiting == float("inf"):
            raise ConfigError(
                "reception.waiting=inf: an edge would keep a sample for ever when a packet is lost; give the seconds "
                "after which it goes on"
            )
        for name, count in (("samples", samples), ("copies", copies)):
            if count < 1:
                raise ConfigError(f"{name}={count}: it is a whole number, 1 or more")
        if (size := points.crossing(OUTPUT).elements * 4 + OVERHEAD) > MOST_BYTES:
            raise ConfigError(
                f"the model's outputs take a datagram of {size} bytes, and UDP takes {MOST_BYTES}; serve a model "
                "with fewer"
            )
        self._packing, self._codec = packing or Packing(values=256), codec
        self._seal, self._samples, self._copies = Seal(key), samples, copies
        self._packed: dict[int, PackedValues] = {}
        self._opened: OrderedDict[tuple[Sender, int], _Opened] = OrderedDict()
        self._done: OrderedDict[tuple[Sender, int], None] = OrderedDict()
        self.counts = UdpCounts()
        if self._seal.open:
            refuse_open("address", address.rpartition(":")[0].strip("[]"))
        self._socket = bound(address)
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="udp-edge", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; the port is free when this returns."""
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._ending.is_set():
            now = time.monotonic()
            due = next(iter(self._opened.values())).due if self._opened else now + _IDLE
            self._receive(min(max(due - now, _SHORTEST), _IDLE))
            now = time.monotonic()
            # What came while the model was at work lies in the kernel, and has come in time.
            for _ in range(_AT_ONCE):
                if not self._receive(0.0):
                    break
            while self._opened and (first := next(iter(self._opened))) and self._opened[first].due <= now:
                self._answer(first)

    def _receive(self, seconds: float) -> bool:
        """Take one datagram, for which it waits so long; returns whether one came."""
        self._socket.settimeout(seconds)
        try:
            data, sender = self._socket.recvfrom(MOST_BYTES + 1)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:  # such as a port that nobody listens at any more, told by the kernel
            log.debug("the edge's socket: %s", error)
            return True
        try:
            self._hear(data, sender[:2])
        except WireError as error:
            self.counts.refused += 1
            log.debug("refused a datagram: %s", error)
        return True

    def _hear(self, data: bytes, sender: Sender) -> None:
        packet = self._seal.read(data)
        if packet.kind != "values":
            raise WireError("an edge takes values")
        packed = self._of(packet.point)
        packed.check(packet.packet, packet.packets, packet.values, packet.beside, packet.body)
        self.counts.packets += 1
        key = sender, packet.request
        if key in self._done:
            self.counts.late += 1
            return
        opened = self._opened.get(key)
        if opened is None:
            if len(self._opened) >= self._samples:
                self._opened.popitem(last=False)
                self.counts.dropped += 1
            opened = _Opened(packet.point, time.monotonic() + self._reception.waiting, packet.beside)
            self._opened[key] = opened
        if (opened.point, opened.beside) != (packet.point, packet.beside):
            raise WireError("two packets of one sample tell different things beside their values")
        opened.bodies.setdefault(packet.packet, packet.body)
        if len(opened.bodies) >= self._reception.enough(packed.packets):
            self._answer(key)

    def _answer(self, key: tuple[Sender, int]) -> None:
        opened = self._opened.pop(key)
        self._done[key] = None
        if len(self._done) > 4 * self._samples:
            self._done.popitem(last=False)
        sender, request = key
        try:
            outputs = self._outputs(opened)
        except (FslError, RuntimeError, MemoryError) as error:
            self.counts.failed += 1
            log.warning("a sample over UDP could not be computed: %s", error)
            return
        self.counts.answered += 1
        answer = Datagram(
            "answer", request, opened.point, 0, 1, len(opened.bodies), b"", bytes(tensor_bytes(outputs.float()))
        )
        for _ in range(self._copies):
            try:
                self._socket.sendto(self._seal.closed(answer), sender)
            except OSError as error:
                log.debug("an answer could not leave: %s", error)

    def _outputs(self, opened: _Opened) -> Tensor:
        point = self._points.names[opened.point]
        values = self._of(opened.point).values(opened.bodies, opened.beside, self._reception, self._loss)
        return self._points.tail(point, values)

    def _of(self, place: int) -> PackedValues:
        if place not in self._packed:
            try:
                self._packed[place] = packed_at(self._points, place, self._codec, self._packing)
            except ConfigError as error:
                raise WireError(f"a datagram names a point that is none here: {error}") from None
        return self._packed[place]


def refuse_open(setting: str, host: str) -> None:
    """Raise ConfigError where datagrams would travel open beyond this machine."""
    if host not in _LOOPBACK:
        raise ConfigError(
            f"{setting}={host}: without a key anybody on the way can read and forge what is sent; give a key, or use "
            "127.0.0.1"
        )


def bound(address: str) -> socket.socket:
    """Returns a socket bound to host:port; ConfigError where that cannot be."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        if not 0 <= int(port) < 1 << 16:
            raise ValueError(f"port {port} is none")
        family, kind, _, _, place = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        found.bind(place)
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(f"address={address}: nothing can listen there ({error}); name a free host:port") from None
    return found
