"""Ends the cloud of a stopped run within seconds, whatever it is doing."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from flwr.serverapp import Grid

log = logging.getLogger(__name__)
_ASK = 2.0  # seconds between two checks that the run still runs
_REFUSED = (401, 403)  # a SuperLink's answers to the token of a stopped run


@contextmanager
def ends_when_stopped(grid: Grid, every: float = _ASK) -> Iterator[None]:
    """End this process, as Ctrl-C does, once the SuperLink no longer takes the run's token.

    Flower itself notices at its next heartbeat, after 20 to 30 s, or when the app next speaks of its own accord.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every):
            if _was_stopped(grid) and not done.is_set():
                log.warning("the run was stopped; its cloud ends, and nodes whose lines it closes drop the round")
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _was_stopped(grid: Grid) -> bool:
    try:
        grid.get_node_ids()
    except httpx.HTTPStatusError as error:
        return error.response.status_code in _REFUSED
    except Exception as error:  # a busy or absent SuperLink is no reason to end: the run's own calls notice that
        log.debug("the SuperLink did not say whether the run goes on: %s", error)
    return False
