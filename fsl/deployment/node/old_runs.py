"""Deletes old runs' files from a node when a new run begins; keeps the newest, which can be resumed.

Journals and ledgers lie elsewhere and stay. So do labels that were drawn at random: a run that goes on would draw and
reveal others, and its ledger counts one draw.
"""

import logging
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from fsl.deployment.node.keeping import Keep

log = logging.getLogger(__name__)
_RUN = re.compile(r"([0-9A-Za-z]{1,64})(?:-[0-9a-f]{8})?", re.ASCII)  # a run's name, and a hash of its partition
_DAY = 86400.0
_RECENT = _DAY  # seconds in which a written file may belong to a run that goes on elsewhere
_DRAWN = "labels"  # the folder of a run's labels


@dataclass(frozen=True, order=True)
class _OldRun:
    """What a run left: when it was last written (seconds since 1970), and its bytes."""

    written: float
    folder: Path
    size: int


def prune(runs: Path, current: str, keep: Keep) -> list[str]:
    """Delete from `runs` what is beyond `keep`, but nothing of the run `current`.

    It also keeps what was written within a day, and what is no run's folder. Returns the names of deleted folders; the
    log names those that it cannot delete.
    """
    found = sorted(_old_runs(runs, current), reverse=True)
    gone, total, full = [], 0, False
    for place, old in enumerate(found):
        age = time.time() - old.written
        full = full or (keep.bytes is not None and total + old.size > keep.bytes)
        beyond = full or place >= keep.runs or (keep.days is not None and age > keep.days * _DAY)
        if not beyond or age < _RECENT:
            total += old.size
            continue
        try:
            _empty(old.folder)
        except OSError as error:
            log.warning("%s, of an old run, cannot be deleted (%s)", old.folder, error.strerror)
        else:
            gone.append(old.folder.name)
    if gone:
        log.info("%s: deleted what %d old runs left (%s)", runs, len(gone), keep.text)
    if keep.bytes is not None and total > keep.bytes:
        log.warning(
            "%s: old runs take %.1f GB, more than keep-bytes, and stay: they were written within a day, and may go on",
            runs,
            total / 1e9,
        )
    return gone


def _old_runs(runs: Path, current: str) -> list[_OldRun]:
    found = []
    for folder in runs.iterdir() if runs.is_dir() else ():
        named = _RUN.fullmatch(folder.name)
        if named is not None and named[1] != current and folder.is_dir() and not folder.is_symlink():
            written, size = _measured(folder)
            if [each.name for each in folder.iterdir()] != [_DRAWN]:  # else it was emptied before
                found.append(_OldRun(written, folder, size))
    return found


def _measured(folder: Path) -> tuple[float, int]:
    """Returns when something in a folder was last made, replaced or deleted (seconds since 1970), and its bytes."""
    last, size = 0.0, 0
    for here, folders, files in os.walk(folder):
        if here == str(folder) and _DRAWN in folders:
            folders.remove(_DRAWN)
        try:
            last = max(last, os.stat(here).st_mtime)
            size += sum(os.lstat(os.path.join(here, name)).st_size for name in files)
        except FileNotFoundError:  # another process deletes it just now
            continue
    return last, size


def _empty(folder: Path) -> None:
    for each in folder.iterdir():
        if each.name == _DRAWN:
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
