"""What was started is ended with all that it started, and nothing else is."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fsl.deployment import processes
from fsl.deployment.processes import end, is_alive, members, send, start, started_at, wait_until

# Starts a process in a session of its own, says that it stands, and waits.
PARENT = """
import signal, subprocess, sys, time
{before}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def family(tmp_path):
    """Starts a process that starts another; all of them are killed in the end."""
    started = []

    def begin(before: str = ""):
        log = tmp_path / f"{len(started)}.log"
        process = start("parent", [sys.executable, "-c", PARENT.format(before=before)], log, {})
        started.append(process)
        assert wait_until(lambda: "ready" in log.read_text(), 20)
        return process

    yield begin
    end(started, patience=0)


def test_a_process_is_ended_with_its_childrens_sessions(family):
    process = family()
    assert len(members(process)) == 2
    assert end([process]) == 1
    assert not members(process)
    assert end([process]) == 0


def test_a_child_that_hides_its_environment_is_found_by_its_parent(family, monkeypatch):
    process = family()
    monkeypatch.setattr(processes, "_token", lambda pid: None)  # as /proc does for programs that handle secrets
    assert len(members(process)) == 2
    end([process])
    assert not members(process)


def test_what_a_dead_process_left_is_ended(family):
    process = family()
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(process), 10)
    assert len(members(process)) == 1
    assert end([process]) == 1
    assert not members(process)


def test_a_process_that_ignores_a_request_is_killed(family):
    process = family("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    end([process], patience=0.2)
    assert not members(process)


@pytest.mark.parametrize("other", [{"start": 1}, {"boot": "another"}])
def test_a_process_that_has_a_recorded_pid_by_chance_is_not_touched(tmp_path, other):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        ours = start("ours", [sys.executable, "-c", ""], tmp_path / "log", {})
        end([ours])
        recorded = replace(ours, pid=stranger.pid, **other)
        assert not is_alive(recorded)
        assert members(recorded) == []
        assert end([recorded], patience=0.2) == 0
        assert stranger.poll() is None
        stranger.communicate(b"\n")
        assert stranger.returncode == 0


def test_a_start_is_told_as_earlier_versions_recorded_it(monkeypatch):
    """In clock ticks since the boot, and the same when the clock is set."""
    stat = Path("/proc/self/stat").read_text()
    ticks = int(stat[stat.rindex(")") + 2 :].split()[19])
    assert started_at(os.getpid()) == ticks
    boot = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600.0)
    assert psutil.boot_time() == boot + 3600.0
    assert started_at(os.getpid()) == ticks


def test_a_signal_reaches_one_process_of_several(family):
    process = family()
    (child,) = [member for member in members(process) if member.pid != process.pid]
    send(child, signal.SIGKILL)
    assert wait_until(lambda: [member.pid for member in members(process)] == [process.pid], 10)
