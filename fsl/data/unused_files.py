"""Deletes from a cache what nobody has used for a month.

Decoded images are cached by what they were decoded from: a folder that gains an image has a new copy of all.
"""

import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)
_NAME = re.compile(r"[0-9a-f]{32}\.(?:npy|json)", re.ASCII)
_DAYS = 30


def mark_used(path: Path) -> None:
    """Note that a cached file was used now, where it may be changed."""
    with suppress(OSError):
        os.utime(path)


def forget_unused(folder: Path) -> None:
    """Delete the cached files in a folder that were not used for a month, and nothing else that lies there."""
    gone = 0
    with suppress(OSError):  # what cannot be deleted stays
        for path in folder.iterdir():
            if _NAME.fullmatch(path.name) and path.stat().st_mtime < time.time() - _DAYS * 86400.0:
                path.unlink(missing_ok=True)
                gone += 1
    if gone:
        log.info("%s: deleted %d files of data that nobody used for %d days", folder, gone, _DAYS)
