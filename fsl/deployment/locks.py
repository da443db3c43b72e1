"""Locks files that several processes of this machine share; a lock ends with its process, however that ends."""

import fcntl
import os
import time
from pathlib import Path


def locked(path: Path, patience: float) -> int:
    """Lock a file, and make a private one where there is none; closing the returned descriptor ends the lock.

    BlockingIOError where another process has it and still does after `patience` seconds.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline, pause = time.monotonic() + patience, 0.01
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
