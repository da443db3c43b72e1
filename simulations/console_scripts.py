"""What console scripts have in common: how one begins, and the line that says why it failed."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fsl.segments.uncompiled import leave_out_compiler


def run_script(command: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command on this process's arguments, with the user's own modules at hand, and exit with its code."""
    leave_out_compiler()
    sys.path.append(os.getcwd())  # at the end: the user's own model lies here, and must shadow nothing
    sys.exit(command(sys.argv[1:]))


def say_why(script: str, line: str, code: int) -> int:
    """Say on stderr why a script, or a part of its work, failed; returns the exit code."""
    print(f"{script}: {line}", file=sys.stderr, flush=True)
    return code
