"""Which tokens an edge has let in, on disk: after a restart it knows that a token is not a new one."""

import hashlib
import os
import threading
from pathlib import Path

from fsl.wire.tokens import Claims


class Journal:
    """A line per session: round, device, fence, hash of the run. It is begun anew with each run."""

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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w" if anew else "a") as file:
                file.write("\t".join(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
            return True

    def _lines(self) -> list[str]:
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line for line in lines if line.count("\t") == 3]  # a last line may be half written
