"""A stream between two devices of a separable network: a greeting, then maps; all of it on the network thread."""

import asyncio
import socket
from typing import Protocol

from fsl.errors import FslError, RunError, WireError
from fsl.inference.separable.group_inbox import GroupEndError
from fsl.inference.separable.group_records import GroupStages, GroupValues, fault_record
from fsl.inference.serving.record_socket import RecordSocket
from fsl.messages import separable_pb2 as pb
from fsl.messages.inference_records import records
from fsl.quoting import one_line
from fsl.wire.frame_stream import TooLarge


class GroupEar(Protocol):
    """Hears what comes over the streams of a device."""

    def came(self, sender: int, one: GroupValues) -> None:
        """Take maps; WireError where they may not come now."""

    def left(self, sender: int, why: FslError) -> None:
        """Hear that a device's stream has ended, and why; GroupEndError: in order."""


class GroupStream:
    """One end of a stream on a connected, non-blocking socket. `rows`: of maps that may come, at most."""

    def __init__(self, sock: socket.socket, stages: GroupStages, rows: int, ear: GroupEar) -> None:
        self.greeting: asyncio.Future[pb.GroupGreeting] = asyncio.get_running_loop().create_future()
        self._peer: int | None = None
        self._stages, self._rows, self._ear = stages, rows, ear
        self._socket = RecordSocket(sock, stages.most_bytes(rows), self)
        self._socket.begin()

    def is_with(self, peer: int) -> None:
        """Take maps from now on: this device is at the other end."""
        self._peer = peer
        self._socket.resume()

    def write(self, data: bytes) -> None:
        """Send a record."""
        self._socket.write(data)

    def end(self, reason: str) -> None:
        """Say why the stream ends (an empty reason: in order), and end it."""
        self._socket.write(fault_record(reason))
        self._peer = None
        self._socket.close()

    def heard(self, data: memoryview) -> bool:
        """Take a record; returns False behind a greeting, until it is known who is there."""
        try:
            return self._heard(data)
        except WireError as error:
            self._refuse(error)
            return False

    def wrote(self) -> None:
        """Hear that all that was written is on its way."""

    def ended(self, error: Exception) -> None:
        """Hear that the stream has ended, by a record that is too large or by the other end."""
        if isinstance(error, TooLarge):
            self._refuse(WireError(str(error)))
        else:
            self._over(f"its stream ended: {one_line(str(error), 300) or type(error).__name__}")

    def _heard(self, data: memoryview) -> bool:
        for message, rest, _ in records(data, pb.ToGroup):
            kind = message.WhichOneof("body")
            if kind == "fault" and not rest:
                self._over(one_line(message.fault.reason, 300))
            elif kind == "greeting" and not rest and not self.greeting.done():
                self.greeting.set_result(message.greeting)
                return False
            elif kind == "maps" and self._peer is not None:
                self._ear.came(self._peer, self._stages.read(message.maps, rest, self._rows))
            else:
                raise WireError(f"a {kind or 'message of no kind'} has no place in a stream here")
        return True

    def _refuse(self, error: WireError) -> None:
        """End the stream for what came over it, and say so at both ends."""
        peer = self._peer
        self.end(f"what it sent was refused: {one_line(str(error), 200)}")
        if not self.greeting.done():
            self.greeting.set_exception(error)
        elif peer is not None:
            self._ear.left(peer, WireError(f"device {peer} sent what it may not: {error}"))

    def _over(self, reason: str) -> None:
        if not self.greeting.done():
            self.greeting.set_exception(WireError(reason or "it ended the stream"))
            return
        peer, self._peer = self._peer, None
        self._socket.close()
        if peer is not None:
            why = RunError(f"device {peer}: {reason}") if reason else GroupEndError(f"device {peer} has ended its work")
            self._ear.left(peer, why)
