"""One end of a lean stream: records over a socket, plain or TLS, read and written where the event loop runs."""

import asyncio
import socket
import ssl
from collections import deque
from typing import Protocol

from fsl.messages.inference_records import record_size
from fsl.wire.frame_stream import TooLarge

_READ = 64 << 10  # bytes at a time
_AT_ONCE = 16  # reads, before others have their turn
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class RecordEar(Protocol):
    """Hears what comes over a lean stream."""

    def heard(self, data: memoryview) -> bool:
        """Take a record; returns False where no more is to be read until `resume`.

        WireError for what has no place there, which ends the stream.
        """

    def wrote(self) -> None:
        """Hear that all that was written is on its way."""

    def ended(self, error: Exception) -> None:
        """Hear that the stream has ended: by what came, or by the other end."""


class RecordSocket:
    """A connected, non-blocking socket; `most` bytes of a record that may come."""

    def __init__(self, sock: socket.socket, most: int, ear: RecordEar) -> None:
        self.unsent = 0  # bytes that the other end has not taken yet
        self._sock = sock
        self._most = most
        self._ear = ear
        self._loop = asyncio.get_running_loop()
        self._data = b""
        self._at = 0  # what lies before it was heard
        self._pieces: list[bytes] = []  # of a record that is larger than one read
        self._missing = 0  # bytes of it
        self._out: deque[memoryview] = deque()
        self._reading = self._writing = False
        self._paused = self._closed = False

    def begin(self) -> None:
        """Begin to read."""
        self._read_on()

    def write(self, data: bytes) -> None:
        """Send bytes, as many as the other end takes now; the rest when it takes more."""
        if self._closed:
            return
        self._out.append(memoryview(data))
        self.unsent += len(data)
        if not self._writing:
            self._flush()

    def resume(self) -> None:
        """Read on, after the ear said to stop."""
        if self._paused and not self._closed:
            self._paused = False
            self._loop.call_soon(self._ready)  # TLS may have decrypted what no selector sees

    def close(self) -> None:
        """End the stream, without a word."""
        if self._closed:
            return
        self._closed = True
        self._stop_reading()
        if self._writing:
            self._loop.remove_writer(self._sock)
        self._out.clear()
        self._pieces.clear()
        self._sock.close()

    def _end(self, error: Exception) -> None:
        if not self._closed:
            self.close()
            self._ear.ended(error)

    # Reading.

    def _read_on(self) -> None:
        if not self._reading:
            self._loop.add_reader(self._sock, self._ready)
            self._reading = True

    def _stop_reading(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._sock)
            self._reading = False

    def _ready(self) -> None:
        try:
            if not self._hear():
                return
            for _ in range(_AT_ONCE):
                if self._closed:
                    return
                data = self._sock.recv(_READ)
                if not data:
                    raise ConnectionError("the other end closed the stream")
                if self._took(data) and not self._hear():
                    return
            self._loop.call_soon(self._ready)
        except _LATER:
            self._read_on()
        except Exception as error:  # of the socket, or of whoever hears
            self._end(error)

    def _took(self, data: bytes) -> bool:
        """Put data to what is there; returns whether a record may be complete."""
        if self._missing > len(data):
            self._pieces.append(data)
            self._missing -= len(data)
            return False
        before = self._pieces or [self._data[self._at :]]
        self._data, self._at = b"".join([*before, data]) if before != [b""] else data, 0
        self._pieces, self._missing = [], 0
        return True

    def _hear(self) -> bool:
        """Have the ear take each record that is complete; returns whether to read on."""
        if self._paused:
            self._stop_reading()
            return False
        if self._pieces:
            return True
        view = memoryview(self._data)
        while (size := record_size(view[self._at :])) is not None:
            if size > self._most:
                raise TooLarge(self._most)
            if len(view) - self._at < size:
                self._missing = size - (len(view) - self._at)
                self._pieces = [self._data[self._at :]]
                return True
            one = view[self._at : self._at + size]
            self._at += size
            if not self._ear.heard(one):
                self._paused = True
                self._stop_reading()
                return False
            if self._closed:
                return False
        if self._at == len(self._data):
            self._data, self._at = b"", 0
        return True

    # Writing.

    def _flush(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(self._out[0])
                self.unsent -= sent
                if sent == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][sent:]
        except _LATER:
            if not self._writing:
                self._loop.add_writer(self._sock, self._flush)
                self._writing = True
            return
        except OSError as error:
            self._loop.call_soon(self._end, error)
            return
        if self._writing:
            self._loop.remove_writer(self._sock)
            self._writing = False
            self._ear.wrote()
