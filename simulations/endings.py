"""Ends commands: failures in words, exit codes, and signals."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fsl.simulations.error_lines import one_line

from fsl.errors import CodeError, FslError, UntrainedError
from fsl.faults import described, is_ending, is_fault, is_temporary, traceback_path
from fsl.quoting import override_value, shell_word


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, raised so that it ends a command in order, like Ctrl-C."""


@contextmanager
def sigterm_ends_like_ctrl_c() -> Iterator[None]:
    """Make SIGTERM raise `TerminatedError` in the main thread, and restore the handler afterwards."""
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
    """Turn the `sys.exit()` of Ray's SIGTERM handler into `TerminatedError`."""
    try:
        yield
    except SystemExit as error:
        if is_ending(error):
            raise TerminatedError from error
        raise


def _terminate(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the command is ending all; a second signal comes too late
    raise TerminatedError


@contextmanager
def ctrl_c_stays_itself() -> Iterator[None]:
    """Raise Ctrl-C again where a library that it met at work, as a data base, raised an error of its own for it."""
    try:
        yield
    except Exception as error:
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, KeyboardInterrupt):
            behind = behind.__cause__ or behind.__context__
        if behind is not None:
            raise type(behind) from error
        raise


def interruption(error: KeyboardInterrupt) -> tuple[str, int]:
    """Returns the signal in a word, and its exit code: 130 for Ctrl-C, 143 for SIGTERM."""
    return ("terminated", 143) if isinstance(error, TerminatedError) else ("interrupted", 130)


def tell(text: str) -> None:
    """Print on stdout; a reader who is gone (`| head`) costs no run."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):  # a closed pipe, a full disk, a closed stream
        silence_stdout()


def silence_stdout() -> None:
    """Discard what is left for stdout, which nobody reads any more."""
    with suppress(OSError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  else Python complains at the very end


def failure_in_words(error: BaseException) -> str:
    """Describe a failure in one line, with file and line in the user's code, and the traceback's file."""
    words = one_line(error) if isinstance(error, FslError) or not is_fault(error) else described(error)
    path = traceback_path(error)
    return words if path is None else f"{words}; traceback: {os.path.relpath(path)}"


def may_go_on(error: BaseException) -> bool:
    """Returns whether a retry of the same command may succeed: not after wrong code or wrong input."""
    if isinstance(error, UntrainedError):
        return False  # no round is left
    return is_temporary(error) if isinstance(error, OSError | CodeError) or not isinstance(error, FslError) else True


def resumed(folder: Path | None) -> str:
    """Returns the argument that resumes a run, quoted for shell and Hydra; "" without a checkpoint."""
    if folder is None or not (folder / "checkpoint" / "state.json").exists():
        return ""
    return f"go on with {shell_word(f'resume={override_value(os.path.relpath(folder))}')}, and the same options"


def literal_folders(arguments: Sequence[str]) -> list[str]:
    """Quote arguments that are existing folders or files, which Hydra's grammar would misread."""
    return [_literal(argument) for argument in arguments]


def _literal(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if key.lstrip("+") in ("resume", "init_from") and equals and value:
        with suppress(OSError, ValueError):
            if Path(value).exists():
                return f"{key}={override_value(value)}"
    return argument
