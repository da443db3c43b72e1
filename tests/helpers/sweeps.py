"""A model that fails as it is told, and whether processes are gone."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

MODEL = """
import os, signal
from pathlib import Path
from fsl.models import MLP

def model(input_shape, classes, how="well", a="", b=(), c=0, d=""):
    if how == "kill" and not Path("mended").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise" and not Path("mended").exists():
        raise ZeroDivisionError("of the user's\\nown")
    return MLP(input_shape, classes)
"""


def all_gone(session: int) -> bool:
    """Whether every process of a session ends, at the latest in some seconds."""
    deadline = time.monotonic() + 10
    while alive(session):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def press_ctrl_c(running: subprocess.Popen[str], ready: Callable[[], bool]) -> str:
    """Press Ctrl-C, as a terminal does for all of a session, once a program is `ready`; returns its standard error.

    Whatever becomes of the test, nothing of the session is left.
    """
    try:
        deadline = time.monotonic() + 120
        while not ready():
            assert running.poll() is None, "it ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        error = running.communicate(timeout=60)[1]
        assert all_gone(running.pid)
        return error
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def alive(session: int) -> list[str]:
    """Processes of a session that still run; those that nobody has waited for yet do not."""
    lines = subprocess.run(["ps", "-ww", "-eo", "sess=,stat=,args="], capture_output=True, text=True, check=True).stdout
    found = (line.split(None, 2) for line in lines.splitlines())
    return [args for own, state, args in found if int(own) == session and not state.startswith("Z")]
