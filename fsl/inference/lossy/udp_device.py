"""A device that sends samples in packets, and does not send lost ones again."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.codecs.codec import Codec
from fsl.codecs.identity import Identity
from fsl.errors import ConfigError, WireError
from fsl.inference.lossy.datagrams import MOST_BYTES, OVERHEAD, Datagram, Seal
from fsl.inference.lossy.packed_values import packed_at
from fsl.inference.lossy.udp_edge import bound, refuse_open
from fsl.inference.split_points import OUTPUT, SplitPoints
from fsl.packets import Packing
from fsl.segments.tensor_trees import Values

_LONGEST = 1e6  # seconds that a socket can wait


@dataclass(frozen=True)
class UdpAnswers:
    """What a device has of its samples (B, ...).

    `outputs`: (B, ...) of the model, zeros where `came` is False: no answer came in time. `share`: (B,) of the packets
    that the edge had. `seconds`: (B,) from a sample's first packet leaving to its answer; infinity where none came.
    """

    outputs: Tensor
    came: Tensor
    share: Tensor
    seconds: Tensor


class UdpDevice:
    """Sends samples at a split point to an edge (`host:port`) over UDP, and waits for answers until a deadline.

    `codec`, `packing` and `key` as at the edge. `pause`: seconds between two packets, for a link that is slower than
    this machine; a deadline counts from a sample's first packet.
    """

    @checks_types("device.")
    def __init__(
        self,
        points: SplitPoints,
        edge: str,
        *,
        codec: Callable[[], Codec] = Identity,
        packing: Packing | None = None,
        key: bytes | None = None,
        pause: float = 0.0,
    ) -> None:
        self._points, self._codec, self._packing = points, codec, packing or Packing(values=256)
        if not 0 <= pause <= _LONGEST:
            raise ConfigError(f"pause={pause!r}: it is a number of seconds, 0 up to {_LONGEST:g}")
        self._seal, self._pause = Seal(key), pause
        host, _, port = edge.rpartition(":")
        if not port.isdecimal():
            raise ConfigError(f"edge={edge}: give host:port, as in 127.0.0.1:9000")
        self._edge = (host.strip("[]"), int(port))
        if self._seal.open:
            refuse_open("edge", self._edge[0])
        self._socket = bound("[::]:0" if ":" in self._edge[0] else "0.0.0.0:0")
        try:
            self._socket.connect(self._edge)
        except OSError as error:
            self._socket.close()
            raise ConfigError(f"edge={edge}: it cannot be reached ({error})") from None
        self._next = int.from_bytes(os.urandom(6), "little")  # requests of another start are not taken for these

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    @checks_types(leave=("inputs",))
    def infer(self, inputs: Values, point: str, deadline: float = 1.0, window: int = 8) -> UdpAnswers:
        """Compute the head of samples (B, ...), send them, and hear what the edge makes of what arrives.

        `deadline`: seconds for each sample's answer. `window`: so many samples are on their way at a time.
        """
        if not 0 <= deadline <= _LONGEST:
            raise ConfigError(f"deadline={deadline!r}: it is a number of seconds, 0 up to {_LONGEST:g}")
        if window < 1:
            raise ConfigError(f"window={window}: at least one sample is on its way at a time")
        self._points.check(point)
        place = self._points.names.index(point)
        packed = packed_at(self._points, place, self._codec, self._packing)
        head = self._points.head(point, inputs)
        assert isinstance(head, Tensor)  # as `packed_at` has made sure
        rows = len(head)
        outputs = torch.zeros(rows, *self._points.crossing(OUTPUT).values.shape[1:])
        share, seconds = torch.zeros(rows), torch.full((rows,), float("inf"), dtype=torch.float64)
        waiting: dict[int, tuple[int, float]] = {}  # by request: the row, and when it left
        row = 0
        while row < rows or waiting:
            while row < rows and len(waiting) < window:
                self._next = (self._next + 1) % (1 << 63)
                waiting[self._next] = row, time.monotonic()
                self._send(place, *packed.packed(head[row : row + 1]), packed.size)
                row += 1
            first = min(left for _, left in waiting.values())
            self._hear(first + deadline, waiting, outputs, share, seconds)
            now = time.monotonic()
            for request in [r for r, (_, left) in waiting.items() if left + deadline <= now]:
                del waiting[request]
        return UdpAnswers(outputs, seconds < float("inf"), share / packed.packets, seconds)

    def datagram_bytes(self, point: str) -> int:
        """Returns the bytes of all datagrams of a sample at a point."""
        packed = packed_at(self._points, self._points.names.index(point), self._codec, self._packing)
        beside, bodies = packed.packed(torch.zeros(1, *packed.shape))
        return sum(len(body) + len(beside) + OVERHEAD for body in bodies)

    def _send(self, place: int, beside: bytes, bodies: list[bytes], size: int) -> None:
        for packet, body in enumerate(bodies):
            one = Datagram("values", self._next, place, packet, len(bodies), size, beside, body)
            try:
                self._socket.send(self._seal.closed(one))
            except OSError:  # the kernel tells of an earlier one that nobody took: lost, as others are
                continue
            if self._pause:
                time.sleep(self._pause)

    def _hear(
        self, until: float, waiting: dict[int, tuple[int, float]], outputs: Tensor, share: Tensor, seconds: Tensor
    ) -> None:
        """Take one answer, or wait until the first sample's time is up."""
        self._socket.settimeout(max(until - time.monotonic(), 1e-4))
        try:
            answer = self._seal.read(self._socket.recv(MOST_BYTES + 1))
        except (OSError, WireError):  # nothing in time; an edge that is gone; somebody else's
            return
        if answer.kind != "answer" or answer.request not in waiting:
            return
        row, left = waiting[answer.request]
        if len(answer.body) != outputs[row].numel() * 4:
            return
        found = torch.frombuffer(bytearray(answer.body), dtype=torch.float32).view(outputs[row].shape)
        outputs[row], share[row], seconds[row] = found, answer.values, time.monotonic() - left
        del waiting[answer.request]
