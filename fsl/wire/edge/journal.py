"""Writes down on disk which tokens an edge has admitted, so that after a restart it admits none twice."""

import hashlib
import os
import re
import threading
from pathlib import Path

from fsl.errors import CheckpointError
from fsl.private_files import private_folder
from fsl.wire.tokens import Claims

_LINE = re.compile(rb"\d{1,20}\t\d{1,20}\t\d{1,20}\t[0-9a-f]{64}")


class Journal:
    """Keeps a line per session: round, device, fence, hash of the run. Each run begins a new file.

    CheckpointError for a damaged file, since skipping a line might admit a token twice. It drops an unfinished last
    line: a crash cut it off before the edge admitted anybody by it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._seen = {tuple(line.split("\t")) for line in self._lines()}

    def enter(self, claims: Claims) -> bool:
        """Write a session down, synced to disk when this returns; False if the file has it already."""
        run = hashlib.sha256(claims.run.encode()).hexdigest()
        entry = (str(claims.round), str(claims.device), str(claims.fence), run)
        with self._lock:
            if entry in self._seen:
                return False
            anew = not any(other[3] == run for other in self._seen)
            if anew:
                self._seen = set()
            self._seen.add(entry)
            private_folder(self.path.parent)
            with open(self.path, "w" if anew else "a", opener=_private) as file:
                file.write("\t".join(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
            return True

    def _lines(self) -> list[str]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read ({error.strerror}); see to its rights") from None
        *whole, cut = data.split(b"\n")
        for number, line in enumerate(whole, start=1):
            if not _LINE.fullmatch(line):
                raise CheckpointError(
                    f"{self.path} is damaged: line {number} is no session; between two runs delete it, and the edge "
                    "begins it anew"
                )
        if cut:  # else the next entry would continue this line
            os.truncate(self.path, len(data) - len(cut))
        return [line.decode() for line in whole]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
