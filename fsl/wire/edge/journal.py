"""Writes down on disk which tokens an edge has admitted, so that after a restart it admits none twice."""

import hashlib
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fsl.errors import CheckpointError
from fsl.private_files import private_folder
from fsl.wire.tokens import Claims

_LINE = re.compile(rb"\d{1,20}\t\d{1,20}\t\d{1,20}\t[0-9a-f]{64}")


@dataclass
class _Batch:
    """Lines that go to the disk together; `anew`: a new run's, which begin the file."""

    lines: list[str] = field(default_factory=list)
    anew: bool = False
    written: bool = False
    error: OSError | None = None


class Journal:
    """Keeps a line per session: round, device, fence, hash of the run. Each run begins a new file.

    Sessions that open while another one's line is on its way to the disk go there together, by one sync: the devices of
    a round come at once. CheckpointError for a damaged file, since skipping a line might admit a token twice. It drops
    an unfinished last line: a crash cut it off before the edge admitted anybody by it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()  # guards what is known
        self._disk = threading.Lock()  # one writes at a time
        self._batch = _Batch()  # to be written next
        lines = self._lines()
        self._run = lines[-1].rpartition("\t")[2] if lines else ""
        self._seen = set(map(_digest, lines))

    def enter(self, claims: Claims) -> bool:
        """Write a session down, synced to disk when this returns; False if the file has it already.

        OSError where it cannot be written: it is not in the file then.
        """
        run = hashlib.sha256(claims.run.encode()).hexdigest()
        line = f"{claims.round}\t{claims.device}\t{claims.fence}\t{run}"
        with self._lock:
            batch = self._batch
            if run != self._run:
                self._run, self._seen, batch.anew = run, set(), True
            if _digest(line) in self._seen:
                return False
            self._seen.add(_digest(line))
            batch.lines.append(line)
        with self._disk:
            if not batch.written:
                self._write(batch)
        if batch.error is not None:
            raise OSError(batch.error.errno, batch.error.strerror, str(self.path))
        return True

    def _write(self, batch: _Batch) -> None:
        with self._lock:
            self._batch = _Batch()
            batch.written = True
        size = 0
        try:
            private_folder(self.path.parent)
            size = self.path.stat().st_size if self.path.exists() and not batch.anew else 0
            with open(self.path, "w" if batch.anew else "a", opener=_private) as file:
                file.writelines(f"{line}\n" for line in batch.lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            batch.error = error
            with suppress(OSError):
                os.truncate(self.path, size)  # of half a line
            with self._lock:
                self._seen -= set(map(_digest, batch.lines))

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


def _digest(line: str) -> bytes:
    """Returns what tells a line from others: a long run has many, and their text would take five times the memory."""
    return hashlib.blake2b(line.encode(), digest_size=16).digest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
