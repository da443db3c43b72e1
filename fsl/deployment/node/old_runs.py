"""What old runs left on a node: the newest are kept, since they can be resumed; the others go when a new run begins."""

import logging
import os
import re
import shutil
import time
from pathlib import Path

log = logging.getLogger(__name__)
_RUN = re.compile(r"([0-9A-Za-z]{1,64})(?:-[0-9a-f]{8})?", re.ASCII)  # a run's name, and which rows it dealt out
_RECENT = 24 * 3600.0  # seconds for which what was written may be of a run that goes on elsewhere


def prune(runs: Path, current: str, keep: int) -> list[str]:
    """Delete all of the folders in `runs` but those of the run `current` and the `keep` that were written to last.

    Nothing that was written to within a day goes, nor what is no folder of a run's. Returns the names of those that
    went; what cannot be deleted stays, and the log says so.
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
    """When something in a folder was made, replaced or deleted last (seconds since 1970)."""
    times = [0.0]
    for here, _, _ in os.walk(folder):
        try:
            times.append(os.stat(here).st_mtime)
        except FileNotFoundError:  # it goes just now
            continue
    return max(times)
