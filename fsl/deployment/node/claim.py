"""Claims a node's state for one process at a time, of one SuperNode and one version of the code."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from fsl.deployment.locks import locked
from fsl.deployment.processes import started_at
from fsl.installed import HOME

HANDOVER = 20.0  # seconds that a process has to end before the next starts
TAKEN = 75  # exit code: another process works on the state folder
_LOCK = "resident.lock"
_BESIDE = ("strategies", "simulations", "configs")  # in a source tree; a wheel has them inside of fsl


@dataclass(frozen=True)
class Owner:
    """The process with which a resident one ends: its pid, and its start time, since pids are used again.

    `start` is 0 where /proc hides it: with hidepid (systemd: ProtectProc) also from its own user, since Flower closes
    its executor to debuggers.
    """

    pid: int
    start: int

    @staticmethod
    def parent() -> "Owner":
        """Returns the parent of this process: Flower's executor, which ends with the SuperNode."""
        pid = os.getppid()
        return Owner(pid, started_at(pid) or 0)

    def is_alive(self) -> bool:
        """Returns whether that very process is alive; of a hidden one, whether this user has one of its number."""
        if self.start:
            return started_at(self.pid) == self.start
        try:
            os.kill(self.pid, 0)
        except OSError:
            return False
        return True


def claim(folder: Path, patience: float) -> int:
    """Lock a state folder for the life of this process, however it ends; returns the lock's descriptor.

    BlockingIOError where another process has it and still does after `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = locked(folder / _LOCK, patience)
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def occupied(folder: Path) -> str:
    """Returns the message for a state folder on which another SuperNode's process works."""
    try:
        holder = f" ({(folder / _LOCK).read_text()[:20]})"
    except OSError:
        holder = ""
    return (
        f"state={folder}: another SuperNode's process{holder} works on it; give each SuperNode a state folder of "
        "its own in its node configuration, or end the other"
    )


def code_in_use() -> str:
    """A fingerprint of fsl's code as it lies on the disk: where it is, and when which file of it was changed."""
    home = HOME.resolve()
    folders = [home, *(home.parent / name for name in _BESIDE if not (home / name).is_dir())]
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        seen = path.stat()
        digest.update(f"{path}|{seen.st_mtime_ns}|{seen.st_size}\n".encode())
    return digest.hexdigest()
