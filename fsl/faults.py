"""What nobody raised on purpose, mostly in code of the user's: which file and line, in one line; and its traceback."""

import errno
import linecache
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import ParamSpec, TypeVar

import torch

from fsl import errors
from fsl.errors import CodeError, ConfigError, FslError, RunError
from fsl.files import write_text
from fsl.installed import HOME, TOP
from fsl.quoting import printable

P = ParamSpec("P")
R = TypeVar("R")
TRACEBACK = "traceback.txt"  # in the folder of a run whose code failed

# What may be gone at the next try: a disk that is full or away, a connection that broke.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT}
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_RAY = tuple(f"{folder}{os.sep}" for folder in getattr(find_spec("ray"), "submodule_search_locations", None) or ())
_OWN = tuple(f"{room}{os.sep}" for room in (HOME, TOP / "simulations", TOP / "strategies"))


def said(error: BaseException) -> str:
    """An exception's type and text on one line: `KeyError: 'front'`. Of a group, its first exception too."""
    try:
        text = printable(" ".join(str(error).split()))
    except Exception:
        text = "its text cannot be made"
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{line}: {said(error.exceptions[0])}" if isinstance(error, BaseExceptionGroup) else line


def described(error: BaseException) -> str:
    """As `said`, with the user's innermost file and line: `ValueError: no (model.py, line 7, in forward)`."""
    line, place = said(error), place_of(error)
    return line if place is None or f"({place})" in line else f"{line} ({place})"


def place_of(error: BaseException) -> str | None:
    """The innermost line that is neither fsl's nor a library's; if there is none, fsl's innermost.

    None where there is no line at all. A traceback begins where the exception was caught, so a script that called fsl
    is not in it.
    """
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_shown(error.filename)}, line {error.lineno}"
    own = None
    for one in _chain(error):
        frames = [(frame, line) for frame, line in traceback.walk_tb(one.__traceback__)]
        theirs = [_line(frame, line) for frame, line in frames if _is_users(frame)]
        if theirs:
            return theirs[-1]
        ours = [_line(frame, line) for frame, line in frames if _is_ours(frame)]
        own = own or (ours[-1] if ours else None)
    return own


def comes_of_users_code(error: BaseException) -> bool:
    """Returns whether the user's own code (a Dataset's item, say) raised the cause of this error of fsl's."""
    causes = (one for one in _chain(error) if not isinstance(one, FslError))
    return any(_is_users(frame) for one in causes for frame, _ in traceback.walk_tb(one.__traceback__))


def is_fault(error: BaseException) -> bool:
    """Whether an exception looks like a bug: not raised by fsl on purpose, and no trouble of the machine's."""
    if isinstance(error, FslError):
        return isinstance(error, CodeError)
    if isinstance(error, OSError):
        return not is_temporary(error) and any(_is_users(frame) for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, Exception | SystemExit)


def is_ending(error: SystemExit) -> bool:
    """Whether a process is to end since Ray got SIGTERM, for which it has a handler of its own; nobody's code is at
    fault."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_code.co_filename.startswith(_RAY)


def is_temporary(error: BaseException) -> bool:
    """Returns whether a retry may succeed: after a full disk, short memory or a broken connection."""
    if isinstance(error, CodeError):
        return error.passing
    if isinstance(error, OSError):
        return error.errno in _PASSING or isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def fault_of(error: BaseException, where: str = "") -> CodeError:
    """A fault as an error of fsl's, in one line; `where` goes before it."""
    if isinstance(error, CodeError):
        return error
    hint = "; to end a run from within, raise fsl.StopRun in an observer" if isinstance(error, SystemExit) else ""
    return CodeError(f"{where}{': ' if where else ''}{described(error)}{hint}", passing=is_temporary(error))


@contextmanager
def traced(folder: Path | None) -> Iterator[None]:
    """Leaves the traceback of a fault in a run's folder, and a note on the exception that says where it lies.

    `sys.exit()` in code that a run calls becomes a CodeError: it would end the run without a word.
    """
    try:
        yield
    except SystemExit as error:
        if is_ending(error):
            raise
        fault = fault_of(error)
        fault.__cause__ = error
        keep_traceback(fault, folder)
        raise fault from error
    except Exception as error:
        if is_fault(error) or comes_of_users_code(error):
            keep_traceback(error, folder)
        raise
    if folder is not None:
        with suppress(OSError):
            (folder / TRACEBACK).unlink(missing_ok=True)  # of a failure that is no more


def traced_into_out(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose argument `out` names the run's folder, its faults `traced` there."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        out = kwargs.get("out")
        with traced(None if out is None else Path(str(out))):
            return function(*args, **kwargs)

    return run


def keep_traceback(error: BaseException, folder: Path | None) -> Path | None:
    """Write an exception's traceback into a run's folder; where it lies, None where nothing can be written."""
    if folder is None:
        return None
    path = folder / TRACEBACK
    known = traceback_path(error)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, traceback_text(error))
    except OSError:
        return known
    if known is None:
        with suppress(AttributeError):
            error.traceback_path = path  # type: ignore[attr-defined]
        error.add_note(f"traceback: {os.path.relpath(path)}")
    return path


@dataclass(frozen=True)
class Failure:
    """An exception on its way from another process, as text: the user's own classes may not survive the way."""

    kind: str  # a class of fsl.errors
    text: str
    trace: str
    passing: bool

    @staticmethod
    def of(error: BaseException) -> "Failure":
        """What was raised; what is no error of fsl's becomes a CodeError."""
        own = error if isinstance(error, FslError) else fault_of(error)
        return Failure(type(own).__name__, said_plainly(own), traceback_text(error), is_temporary(own))

    def error(self) -> FslError:
        """An error of the same class and text, with the traceback as a note."""
        kind = getattr(errors, self.kind, RunError)
        made: FslError = kind.__new__(kind)  # whatever its constructor wants
        made.args = (self.text,)
        if isinstance(made, CodeError):
            made.passing = self.passing
        made.add_note(f"in another process:\n{self.trace}")
        return made


def said_plainly(error: FslError) -> str:
    """The text of an error of fsl's."""
    return printable(" ".join(str(error).split()))


def traceback_path(error: BaseException) -> Path | None:
    """Where an exception's traceback was written, if it was."""
    return getattr(error, "traceback_path", None)


def traceback_text(error: BaseException) -> str:
    """The whole traceback, also of an exception that cannot even be printed."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # what a `__str__` may raise
        return "".join([*traceback.format_tb(error.__traceback__), said(error), "\n"])


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, what is in it, and what led to it."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, BaseExceptionGroup):
            yield from _chain(one.exceptions[0])
        yield one
        before = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        waiting += [] if before is None else [before]


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OWN)


def _is_users(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    if name.startswith("<"):  # generated code, unless it was typed: into a notebook, say
        return frame.f_globals.get("__name__") == "__main__" and not name.startswith("<frozen")
    if "site-packages" in name or "dist-packages" in name or name.startswith(_LIBRARIES) or _is_ours(frame):
        return False
    # Compiled libraries name sources that are not here, as Ray does; those of a notebook's cells are in memory.
    return not name.endswith((".pyx", ".pxi")) and _has_source(frame)


def _has_source(frame: FrameType) -> bool:
    name, names = frame.f_code.co_filename, frame.f_globals
    return os.path.exists(name) or names.get("__name__") == "__main__" or bool(linecache.getlines(name, names))


def _line(frame: FrameType, line: int) -> str:
    return f"{_shown(frame.f_code.co_filename)}, line {line}, in {frame.f_code.co_name}"


def _shown(name: str) -> str:
    """A file, from here where it lies below."""
    path = Path(name)
    with suppress(ValueError, OSError):
        return str(path.absolute().relative_to(Path.cwd())) if not name.startswith("<") else name
    return name


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Turn what fails inside into a ConfigError that says `what`, or into one of the user's code."""
    try:
        yield
    except FslError:
        raise
    except Exception as error:
        if comes_of_users_code(error):
            raise fault_of(error, what) from error
        raise ConfigError(f"{what}: {said(error)}") from error
