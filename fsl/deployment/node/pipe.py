"""Exchanges frames between a message's process and a node's resident process: a letter, a length, and bytes."""

import contextlib
import socket
import struct
import threading

SILENCE = 120.0  # seconds of silence after which one end gives the other up
_HEAD = struct.Struct("<cQ")
QUESTION, ANSWER, ERROR = b"q", b"a", b"e"
BEAT = b"b"  # a sign of life; the first one accepts the question
AGAIN = b"r"  # the process ends because of this message: ask again
OCCUPIED = b"o"  # another SuperNode's process works here


class Connection:
    """One end of a connection; several threads may send on it."""

    def __init__(self, socket_: socket.socket):
        self._socket = socket_
        self._lock = threading.Lock()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, what: bytes | None = None, data: bytes = b"") -> None:
        """Close the connection, after a last frame where `what` is given."""
        if what is not None:
            self.send_last(what, data)
        self._socket.close()

    def send(self, what: bytes, data: bytes = b"") -> None:
        """Send a frame; OSError where the other end is gone."""
        with self._lock:
            self._socket.sendall(_HEAD.pack(what, len(data)))
            self._socket.sendall(data)

    def send_last(self, what: bytes, data: bytes = b"") -> bool:
        """Send a frame to an end that may be gone; returns whether that worked."""
        with contextlib.suppress(OSError):
            self.send(what, data)
            return True
        return False

    def receive(self, timeout: float) -> tuple[bytes, bytes]:
        """Read the next frame; TimeoutError after `timeout` silent seconds, EOFError where the other end is gone."""
        self._socket.settimeout(timeout)
        what, size = _HEAD.unpack(self._exactly(_HEAD.size))
        return what, bytes(self._exactly(size))

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError("the connection was closed")
            view = view[count:]
        return data
