"""Starts processes in the background, records them, finds them again, and ends them with all that they started."""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from fsl.errors import ConfigError
from fsl.quoting import printable

_PROC = Path("/proc")
_TOKEN = "FSL_FEDERATION_PROCESS"  # every child inherits it, in any session
_POLL = 0.05  # seconds between two looks


@dataclass(frozen=True)
class StartedProcess:
    """A process that this module started; its start time tells it from a later one with the same pid."""

    name: str
    pid: int
    start: int  # clock ticks since the machine's boot
    boot: str
    token: str


@dataclass(frozen=True)
class ProcessInTree:
    """One living process, as /proc shows it."""

    pid: int
    parent: int
    session: int
    start: int
    command: str  # the program's name and its arguments


def start(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> StartedProcess:
    """Start a command in a session of its own, where no Ctrl-C reaches it; appends its output to a log file."""
    if not (_PROC / "self" / "stat").exists():
        raise ConfigError("this machine has no /proc; a local federation needs Linux")
    token = f"{name}:{secrets.token_hex(16)}"
    with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, _TOKEN: token},
            start_new_session=True,
            umask=0o077,  # keeps Flower's databases and apps, and nodes' files, private
        )
    process.returncode = 0  # nobody waits on this object: the process outlives it, and /proc shows its end
    shown = _read(process.pid)
    return StartedProcess(name, process.pid, shown.start if shown else -1, _boot(), token)


def is_alive(started: StartedProcess) -> bool:
    """Returns whether the process itself is alive, whatever became of those it started."""
    return started.boot == _boot() and (shown := _read(started.pid)) is not None and shown.start == started.start


def started_at(pid: int) -> int | None:
    """Returns when a living process started, in clock ticks since boot; None where there is none.

    0 where the machine has no /proc, which cannot tell two processes with the same pid apart.
    """
    if not (_PROC / "self" / "stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return 0
        return 0
    shown = _read(pid)
    return None if shown is None else shown.start


def members(started: StartedProcess) -> list[ProcessInTree]:
    """Find the living ones among a process and all that it started, directly or not; also once it is dead itself."""
    return list(_members([started], _living()).values())


def send(member: ProcessInTree, number: int) -> None:
    """Send a signal, unless the process is gone."""
    shown = _read(member.pid)
    if shown is not None and shown.start == member.start:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, number)


def end(processes: Sequence[StartedProcess], patience: float = 10.0) -> int:
    """End these processes and all that they started: SIGTERM, and after `patience` seconds SIGKILL.

    Returns how many of `processes` were alive, or had left others alive.
    """
    living = _living()
    had = sum(bool(_members([process], living)) for process in processes)
    told: set[ProcessInTree] = set()

    def all_gone() -> bool:
        left = set(_members(processes, _living()).values())
        for member in left - told:
            send(member, signal.SIGTERM)
        told.update(left)
        return not left

    def all_killed() -> bool:
        left = _members(processes, _living()).values()
        for member in left:
            send(member, signal.SIGKILL)
        return not left

    if not wait_until(all_gone, patience):
        wait_until(all_killed, patience)
    for process in processes:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)  # a child of this process leaves a zombie
    return had


def wait_until(condition: Callable[[], bool], timeout: float, every: float = _POLL) -> bool:
    """Poll until `condition` holds; False after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def last_words(log: Path) -> str:
    """Returns the last error in a log as one line, or else its last line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    lines = [line.strip() for line in text.splitlines()]
    errors = [i for i, line in enumerate(lines) if "ERROR" in line]
    said = list(takewhile(lambda line: line and "INFO" not in line, lines[errors[-1] :][:3])) if errors else lines[-1:]
    return printable(" ".join(" ".join(said).split())) or "it said nothing"


def _members(processes: Iterable[StartedProcess], living: Mapping[int, ProcessInTree]) -> dict[int, ProcessInTree]:
    """Find processes with a token in their environment, and, as some hide theirs, descendants of a living process."""
    processes = [process for process in processes if process.boot == _boot()]
    tokens = {process.token.encode() for process in processes}
    found = {p.pid: living[p.pid] for p in processes if p.pid in living and living[p.pid].start == p.start} | {
        pid: member for pid, member in living.items() if _token(pid) in tokens
    }
    while more := {pid: m for pid, m in living.items() if pid not in found and m.parent in found}:
        found |= more
    return found


def _living() -> dict[int, ProcessInTree]:
    shown = (_read(int(folder.name)) for folder in _PROC.iterdir() if folder.name.isdigit())
    return {member.pid: member for member in shown if member is not None}


def _read(pid: int) -> ProcessInTree | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
        command = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # behind the name, which may hold any character
    if fields[0] in "ZX":
        return None
    words = command.decode(errors="replace").rstrip("\0").split("\0")
    return ProcessInTree(pid, int(fields[1]), int(fields[3]), int(fields[19]), " ".join(_without_interpreter(words)))


def _without_interpreter(words: list[str]) -> list[str]:
    if len(words) > 1 and Path(words[0]).name.startswith("python") and not words[1].startswith("-"):
        words = words[1:]
    return [Path(words[0]).name, *words[1:]]


def _token(pid: int) -> bytes | None:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    prefix = _TOKEN.encode() + b"="
    return next((e.removeprefix(prefix) for e in environment.split(b"\0") if e.startswith(prefix)), None)


def _boot() -> str:
    try:
        return (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    except OSError:
        return ""
