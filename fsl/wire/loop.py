"""Runs the network thread: one event loop for any number of sessions."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
_PATIENCE = 30.0  # seconds for calls that take next to no time


class NetworkThread:
    """Runs an event loop in a thread of its own, where nothing computes, so that no message waits for a computation."""

    def __init__(self, name: str):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, task: Coroutine[Any, Any, T], timeout: float = _PATIENCE) -> T:
        """Run a coroutine on the thread, and wait for its result."""
        return asyncio.run_coroutine_threadsafe(task, self.loop).result(timeout)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Schedule a function on the thread; does nothing once the thread has ended."""
        with suppress(RuntimeError):  # the loop is closed
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
