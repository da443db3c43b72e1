"""A model that fails as it is told, and whether processes are gone."""

import os
import signal
import subprocess
import time
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


def end_session(session: int) -> None:
    """Kill what is left of a session, whatever became of the test."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def alive(session: int) -> list[str]:
    """Processes of a session that still run; those that nobody has waited for yet do not."""
    lines = subprocess.run(["ps", "-ww", "-eo", "sess=,stat=,args="], capture_output=True, text=True, check=True).stdout
    found = (line.split(None, 2) for line in lines.splitlines())
    return [args for own, state, args in found if int(own) == session and not state.startswith("Z")]
