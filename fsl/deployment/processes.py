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

import psutil

from fsl.errors import ConfigError
from fsl.quoting import printable

# Names one boot of Linux. psutil has no such name: its time of the boot moves with the clock.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TICKS = os.sysconf("SC_CLK_TCK")  # a second
_TOKEN = "FSL_FEDERATION_PROCESS"  # inherited by whatever a process starts, in whatever session
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
    """One living process: itself, and the program's name with its arguments."""

    process: psutil.Process
    command: str

    @property
    def pid(self) -> int:
        """The process's number, which the system gives to another when it is dead."""
        return self.process.pid


def start(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> StartedProcess:
    """Start a command in a session of its own, where no Ctrl-C reaches it; its output is added to a log file."""
    if not _boot():
        raise ConfigError(f"this machine has no {_BOOT_ID}; a local federation needs Linux")
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
    process.returncode = 0  # nobody asks this object: the process outlives it, and its end is seen from outside
    ticks = started_at(process.pid)
    return StartedProcess(name, process.pid, -1 if ticks is None else ticks, _boot(), token)


def is_alive(started: StartedProcess) -> bool:
    """Whether the process itself is alive, whatever became of those it started."""
    return started.boot == _boot() and started_at(started.pid) == started.start


def started_at(pid: int) -> int | None:
    """Returns when a living process started, in clock ticks since boot; None where there is none.

    psutil tells it by the clock, which may be set meanwhile: boot and start move together then, and their difference
    stays what it was.
    """
    try:
        while True:
            boot = psutil.boot_time()
            process = psutil.Process(pid)
            ticks = round((process.create_time() - boot) * _TICKS)
            if boot == psutil.boot_time():
                return ticks if _is_living(process) else None
    except psutil.Error:
        return None


def members(started: StartedProcess) -> list[ProcessInTree]:
    """The process and all that it started, directly or not, that are alive; also once it is dead itself."""
    shown = ((process, _command(process)) for process in _members([started], _living()).values())
    return [ProcessInTree(process, command) for process, command in shown if command is not None]


def send(member: ProcessInTree, number: int) -> None:
    """Send a signal, unless the process is gone."""
    _send(member.process, number)


def end(processes: Sequence[StartedProcess], patience: float = 10.0) -> int:
    """End these processes and all that they started: SIGTERM, and after `patience` seconds SIGKILL.

    Returns how many of `processes` were alive, or had left others alive.
    """
    living = _living()
    had = sum(bool(_members([process], living)) for process in processes)
    told: set[psutil.Process] = set()

    def all_gone() -> bool:
        left = set(_members(processes, _living()).values())
        for process in left - told:
            _send(process, signal.SIGTERM)
        told.update(left)
        return not left

    def all_killed() -> bool:
        left = _members(processes, _living()).values()
        for process in left:
            _send(process, signal.SIGKILL)
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


def _members(started: Iterable[StartedProcess], living: Mapping[int, psutil.Process]) -> dict[int, psutil.Process]:
    """Those that carry a token in their environment, and, as some hide theirs, the descendants of a living process."""
    started = [process for process in started if process.boot == _boot()]
    tokens = {process.token for process in started}
    found = {one.pid: living[one.pid] for one in started if one.pid in living and is_alive(one)} | {
        pid: process for pid, process in living.items() if _token(pid) in tokens
    }
    parents = {pid: _parent(process) for pid, process in living.items() if pid not in found}
    while more := {pid: living[pid] for pid, parent in parents.items() if pid not in found and parent in found}:
        found |= more
    return found


def _living() -> dict[int, psutil.Process]:
    found = {}
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if _is_living(process):
                found[pid] = process
    return found


def _is_living(process: psutil.Process) -> bool:
    """Whether more of a process is left than its exit code."""
    return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)  # which looks whether another has its pid by now


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _command(process: psutil.Process) -> str | None:
    try:
        return " ".join(_without_interpreter(process.cmdline()))
    except psutil.Error:
        return None


def _without_interpreter(words: list[str]) -> list[str]:
    if len(words) > 1 and Path(words[0]).name.startswith("python") and not words[1].startswith("-"):
        words = words[1:]
    return [Path(words[0]).name, *words[1:]] if words else []


def _token(pid: int) -> str | None:
    try:
        return psutil.Process(pid).environ().get(_TOKEN)
    except psutil.Error:
        return None


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
