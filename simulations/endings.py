"""How a command ends: what it says of a failure, on which exit code, and what a signal does."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fsl.simulations.error_lines import one_line

from fsl.errors import CodeError, FslError
from fsl.faults import described, is_ending, is_fault, passing, traceback_path
from fsl.quoting import override_value, shell_word


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: whatever ends well on Ctrl-C ends well on it."""


@contextmanager
def sigterm_ends_like_ctrl_c() -> Iterator[None]:
    """SIGTERM raises `TerminatedError`; the handler from before is put back. Only the main thread can have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def ray_ends_like_ctrl_c() -> Iterator[None]:
    """Where Ray runs, SIGTERM comes to its handler, which calls `sys.exit()`: that is `TerminatedError`, too."""
    try:
        yield
    except SystemExit as error:
        if is_ending(error):
            raise TerminatedError from error
        raise


def _terminate(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what has been started is being ended; a second one comes too late
    raise TerminatedError


def interruption(error: KeyboardInterrupt) -> tuple[str, int]:
    """Which signal it was, in a word, and its exit code: 130 for Ctrl-C, 143 for SIGTERM."""
    return ("terminated", 143) if isinstance(error, TerminatedError) else ("interrupted", 130)


def tell(text: str) -> None:
    """Print on stdout; who reads it may be gone (`| head`), and no run is lost for that."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):  # a pipe that is closed, a disk that is full, a stream that is closed
        gone()


def gone() -> None:
    """Nobody reads stdout any more: what is left for it goes nowhere."""
    with suppress(OSError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  else Python complains at the very end


def failure_in_words(error: BaseException) -> str:
    """A failure in one line: file and line where it is one of the user's code, and where the traceback lies."""
    words = one_line(error) if isinstance(error, FslError) or not is_fault(error) else described(error)
    path = traceback_path(error)
    return words if path is None else f"{words}; traceback: {os.path.relpath(path)}"


def may_go_on(error: BaseException) -> bool:
    """Whether the same command may get further at the next try: not where code is wrong, or what it was given."""
    return passing(error) if isinstance(error, OSError | CodeError) or not isinstance(error, FslError) else True


def resumed(folder: Path | None) -> str:
    """How to go on with a run, as a shell and Hydra take it; nothing where it has no checkpoint."""
    if folder is None or not (folder / "checkpoint" / "state.json").exists():
        return ""
    return f"go on with {shell_word(f'resume={override_value(os.path.relpath(folder))}')}, and the same options"


def literal_folders(arguments: Sequence[str]) -> list[str]:
    """The arguments, a folder or file that is there put into quotes where it was typed without: Hydra has a grammar."""
    return [_literal(argument) for argument in arguments]


def _literal(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if key.lstrip("+") in ("resume", "init_from") and equals and value:
        with suppress(OSError, ValueError):
            if Path(value).exists():
                return f"{key}={override_value(value)}"
    return argument
