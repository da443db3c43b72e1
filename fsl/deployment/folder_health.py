"""Tells whether a process can go on writing into its folder."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

FULL = 50_000_000  # bytes; a disk with less room counts as full


def why_unwritable(name: str, folder: Path) -> str:
    """Returns why nothing can be written into a folder now, as one line that begins with `name`; empty where it can.

    It writes a small file and deletes it: a disk that failed is often still there to be read.
    """
    probe = folder / f".health-{os.getpid()}"
    try:
        free = free_bytes(folder)
        if free < FULL:
            return f"{name}={folder}: its disk is full, {free / 1e6:.0f} MB are left"
        probe.write_bytes(b"written\n" * 64)
    except OSError as error:
        return f"{name}={folder} cannot be written ({error.strerror})"
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return ""


def free_bytes(folder: Path) -> int:
    """Returns the room that is left for this user on a folder's disk, in bytes."""
    return shutil.disk_usage(folder).free
