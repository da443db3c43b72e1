"""Runs the network thread: one event loop for any number of sessions."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_PATIENCE = 30.0  # seconds for calls that take next to no time


class _NetworkLoop(asyncio.SelectorEventLoop):
    """An event loop that hears nothing once it is closed.

    All loops of a process share gRPC's one poller: whichever loop wakes first takes what the poller has, and hands each
    event to the loop that its call began on. An event of a call that was cancelled may come after that call's loop has
    closed; an error there would break off the loop that hands events out, with those of others still in its hands.
    """

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            unheard = asyncio.Handle(callback, args, self, context)
            unheard.cancel()
            return unheard


class NetworkThread:
    """Runs an event loop in a thread of its own, where nothing computes, so that no message waits for a computation."""

    def __init__(self, name: str):
        self.loop = _NetworkLoop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, task: Coroutine[Any, Any, T], timeout: float = _PATIENCE) -> T:
        """Run a coroutine on the thread, and wait for its result; RuntimeError once the thread has ended."""
        if self.loop.is_closed():
            task.close()
            raise RuntimeError(f"the network thread {self._thread.name} has ended")
        return asyncio.run_coroutine_threadsafe(task, self.loop).result(timeout)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Schedule a function on the thread; does nothing once the thread has ended."""
        self.loop.call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        """End the thread, and cancel what still runs on it."""
        if self.loop.is_closed():
            return
        self.run(_cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_PATIENCE)
        self.loop.close()


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
