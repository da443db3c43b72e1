"""Which tokens an edge has let in, on disk: after a restart it knows that a token is not a new one."""

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
    """A line per session: round, device, fence, hash of the run. It is begun anew with each run.

    CheckpointError for a file that is damaged: who reads over it might let a token in a second time. A last line
    without its end was cut off by a crash before anybody was let in by it, and goes.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._seen = {tuple(line.split("\t")) for line in self._lines()}

    def enter(self, claims: Claims) -> bool:
        """Write a session down; False if it is there already. It is on the disk when this returns."""
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
        if cut:  # else what comes next would stand on the same line
            os.truncate(self.path, len(data) - len(cut))
        return [line.decode() for line in whole]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
