"""Keeps in memory, up to a number of bytes, what files held that were written or read last."""

import os
from collections import OrderedDict
from pathlib import Path


class RecentFiles:
    """The contents of the files used last; one that has changed on the disk, or is gone, is not remembered."""

    def __init__(self, limit: int):
        """`limit`: bytes of all contents together."""
        self._limit = limit
        self._held = 0
        self._contents: OrderedDict[Path, tuple[tuple[int, ...], bytes]] = OrderedDict()

    def get(self, path: Path, found: os.stat_result) -> bytes | None:
        """Returns a file's content, if the file is still as it was; `found`: its status now."""
        known = self._contents.get(path)
        if known is None or known[0] != _sign(found):
            return None
        self._contents.move_to_end(path)
        return known[1]

    def put(self, path: Path, found: os.stat_result, content: bytes) -> None:
        """Remember a file's content, and forget those that were used longest ago."""
        self.forget(path)
        if len(content) > self._limit:
            return
        self._contents[path] = _sign(found), content
        self._held += len(content)
        while self._held > self._limit:
            _, (_, old) = self._contents.popitem(last=False)
            self._held -= len(old)

    def forget(self, path: Path) -> None:
        """Forget a file."""
        if (known := self._contents.pop(path, None)) is not None:
            self._held -= len(known[1])


def _sign(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_size, found.st_mtime_ns
