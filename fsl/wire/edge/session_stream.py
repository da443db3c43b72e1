"""One connection of a session: a gRPC stream from the door, and the lean stream that its device opens beside it."""

import asyncio
import threading
from collections.abc import Callable

from fsl.messages.step_messages import Outgoing, as_frame
from fsl.wire.edge.refusal import Refusal
from fsl.wire.steps.step_socket import StepSocket


class SessionStream:
    """The frames to send over a connection, and how it ends; made on the network thread.

    Where the device wants a lean stream (`waits`), messages wait until it has opened one, or says that it cannot; the
    gRPC stream then carries nothing but the end.
    """

    def __init__(self, call: Callable[..., object], waits: bool):
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.ended: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        self.steps: StepSocket | None = None
        self._call = call  # a function on the network thread
        self._held: list[Outgoing] | None = [] if waits else None
        self._lock = threading.Lock()

    @property
    def undecided(self) -> bool:
        """Returns whether the device may still open a lean stream."""
        return self._held is not None

    def put(self, message: Outgoing) -> None:
        """Send a message; on the computing thread, or before there is a lean stream."""
        with self._lock:
            if self._held is not None:
                self._held.append(message)
                return
            steps = self.steps
        if steps is not None:
            steps.write(message)
        else:
            self._call(self.frames.put_nowait, as_frame(message))

    def stay(self) -> None:
        """Have the gRPC stream carry the steps, too."""
        with self._lock:
            held, self._held = self._held or [], None
        for message in held:
            self.frames.put_nowait(as_frame(message))

    def carry(self, steps: StepSocket) -> None:
        """Have a lean stream carry the steps, which the computing thread has not begun yet."""
        with self._lock:
            held, self._held = self._held or [], None
            for message in held:
                steps.queue(message)
            self.steps = steps

    def end(self, refusal: Refusal | None) -> None:
        """End it after the queued frames; `refusal`: with this status. On the network thread."""
        if not self.ended.done():
            self.ended.set_result(refusal)
            self.frames.put_nowait(None)
