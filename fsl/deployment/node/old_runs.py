"""Deletes old runs' files from a node when a new run begins; keeps the newest, which can be resumed."""

import logging
import os
import re
import shutil
import time
from pathlib import Path

log = logging.getLogger(__name__)
_RUN = re.compile(r"([0-9A-Za-z]{1,64})(?:-[0-9a-f]{8})?", re.ASCII)  # a run's name, and a hash of its partition
_RECENT = 24 * 3600.0  # seconds in which a written file may belong to a run that goes on elsewhere


def prune(runs: Path, current: str, keep: int) -> list[str]:
    """Delete the folders in `runs`, except that of the run `current` and the `keep` most recently written.

    It also keeps what was written within a day, and what is no run's folder. Returns the names of deleted folders; the
    log names those that it cannot delete.
    """
    found = []
    for folder in runs.iterdir() if runs.is_dir() else ():
        named = _RUN.fullmatch(folder.name)
        if named is not None and named[1] != current and folder.is_dir() and not folder.is_symlink():
            found.append((_written(folder), folder))
    gone = []
    for written, folder in sorted(found, reverse=True)[keep:]:
        if time.time() - written < _RECENT:
            continue
        try:
            shutil.rmtree(folder)
        except OSError as error:
            log.warning("%s, of an old run, cannot be deleted (%s)", folder, error.strerror)
        else:
            gone.append(folder.name)
    if gone:
        log.info("%s: deleted what %d old runs left (keep-runs=%d)", runs, len(gone), keep)
    return gone


def _written(folder: Path) -> float:
    """Returns when something in a folder was last made, replaced or deleted (seconds since 1970)."""
    times = [0.0]
    for here, _, _ in os.walk(folder):
        try:
            times.append(os.stat(here).st_mtime)
        except FileNotFoundError:  # another process deletes it just now
            continue
    return max(times)
