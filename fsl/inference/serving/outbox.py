"""Records that wait to be sent at one end of a stream: they leave together, over gRPC or over a lean stream."""

import asyncio
import math
from collections import deque
from collections.abc import Callable

from fsl.inference.serving.record_socket import RecordSocket
from fsl.wire.frame_stream import CHUNK, Writes, send


class RecordOutbox:
    """Sends records in order; all of it on the network thread.

    `sent` is told the bytes and the number of records that have left. `stuck_since`: by the clock, since when the other
    end takes no more; None: it does.
    """

    def __init__(self, clock: Callable[[], float], sent: Callable[[int, int], None]) -> None:
        self.stuck_since: float | None = None
        self._clock = clock
        self._sent = sent
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # in it
        self._lean: RecordSocket | None = None
        self._flushing = False
        self._changed = asyncio.Event()

    @property
    def unsent(self) -> int:
        """Bytes that have not left."""
        return self._bytes + (0 if self._lean is None else self._lean.unsent)

    def put(self, data: bytes) -> None:
        """Have a record sent."""
        self._waiting.append(data)
        self._bytes += len(data)
        if self._lean is None:
            self._changed.set()
        elif not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)  # with what else comes in this turn

    def carry(self, lean: RecordSocket) -> None:
        """Send over a lean stream from now on."""
        self._lean = lean

    async def write(self, stream: Writes, most: int = CHUNK) -> None:
        """Send over a gRPC stream, in messages of at most `most` bytes unless a record is larger, until cancelled.

        It may begin when a lean stream carries records already, and then sends none.
        """
        while True:
            while not self._waiting or self._lean is not None:
                self._changed.clear()
                await self._changed.wait()
            data, count = self._joined(most)
            self.stuck_since = self._clock()
            await send(stream, data)
            self.stuck_since = None
            self._sent(len(data), count)

    def wrote(self) -> None:
        """Hear that the lean stream has taken all."""
        self.stuck_since = None

    def clear(self) -> None:
        """Forget what waits, and the lean stream."""
        self._waiting.clear()
        self._bytes = 0
        self._lean = self.stuck_since = None

    def _flush(self) -> None:
        self._flushing = False
        if self._lean is None or not self._waiting:
            return
        data, count = self._joined(math.inf)
        self._lean.write(data)
        if self._lean.unsent and self.stuck_since is None:
            self.stuck_since = self._clock()
        self._sent(len(data), count)

    def _joined(self, most: float) -> tuple[bytes, int]:
        """Take records that wait, the first and as many more as fit; returns them in a row, and how many they are."""
        parts = [self._waiting.popleft()]
        size = len(parts[0])
        while self._waiting and size + len(self._waiting[0]) < most:
            parts.append(self._waiting.popleft())
            size += len(parts[-1])
        self._bytes -= size
        return parts[0] if len(parts) == 1 else b"".join(parts), len(parts)
