"""Loops in C that this machine's compiler makes once a user.

They are kept in the user's cache (`FSL_CACHE`, ~/.cache/fsl by default) for the processes after. What lies there is
loaded only where nobody else could have written it, and whoever asks for a kernel checks what it computes.
"""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from fsl.errors import FslError
from fsl.files import write_bytes, write_text
from fsl.private_files import cache_folder, only_ours, private_folder

Kernel = TypeVar("Kernel")
Binding = Callable[[ctypes.CDLL], Kernel | None]  # a library's functions, ready for use; None where they err

_COMPILERS = ("cc", "gcc", "clang")
_CPU = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")


class NoKernelError(FslError):
    """There is no kernel on this machine; says why in a few words."""


@dataclass(frozen=True)
class KernelSource:
    """C source of a library. `name` begins its file's; `options` are the compiler's.

    `wider`: options that not every system can do, which are left out where they fail. `native`: for this machine's CPU
    alone, so that a home folder on several machines has a library for each kind of CPU.
    """

    name: str
    text: str
    options: tuple[str, ...]
    wider: tuple[str, ...] = ()
    native: bool = False

    @property
    def path(self) -> Path | None:
        """Where the library is kept; None for a native one, where this system does not tell which CPU it has."""
        cpu = _cpu() if self.native else ""
        if cpu is None:
            return None
        content = "\0".join((self.text, *self.options, *self.wider, sys.platform, platform.machine(), cpu))
        return cache_folder() / "kernels" / f"{self.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.so"


def kept_kernel(source: KernelSource, bind: Binding[Kernel]) -> Kernel | None:
    """Load the kernel that an earlier process built; None where there is none that this user alone could write."""
    path = source.path
    try:
        ours = path is not None and all(map(only_ours, (path.parent, path, _digest_of(path))))
        return _loaded(path, bind) if path is not None and ours and _whole(path) else None
    except OSError:
        return None


def built_kernel(source: KernelSource, bind: Binding[Kernel]) -> Kernel:
    """Build the kernel, and keep it for later processes where this user's cache can be written.

    NoKernelError where this machine has no compiler, or what it makes does not load or errs.
    """
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise NoKernelError(f"this machine has no C compiler ({', '.join(_COMPILERS)})")
    reason, kept = "", source.path
    for folder in (*([kept.parent] if kept is not None else []), Path(tempfile.gettempdir())):
        keeps = kept is not None and folder == kept.parent
        try:
            if keeps and not only_ours(private_folder(folder)):
                continue
            with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as building:
                library = _compiled(compiler, source, Path(building))
                kernel = _loaded(library, bind)  # stays loaded when the file is gone
                if kernel is None:
                    raise NoKernelError(f"{compiler} builds a kernel that computes something else")
                if keeps and kept is not None:
                    _keep(library, kept)
                return kernel
        except (subprocess.SubprocessError, OSError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            reason = said[0][:200] if said else type(error).__name__
    raise NoKernelError(f"{compiler} cannot build the kernel: {reason}")


def _compiled(compiler: str, source: KernelSource, folder: Path) -> Path:
    text, library = folder / f"{source.name}.c", folder / f"{source.name}.so"
    text.write_text(source.text)
    native = ["-march=native"] if source.native else []
    command = [compiler, *source.options, *native, "-shared", "-fPIC", "-o", str(library), str(text)]
    try:
        _run([*command, *source.wider])
    except subprocess.CalledProcessError:
        if not source.wider:
            raise
        _run(command)
    return library


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)


def _keep(library: Path, kept: Path) -> None:
    """Put a library in its place, whoever else builds at the same time, and behind it the digest by which it counts."""
    content = library.read_bytes()
    write_bytes(kept, content, private=True)
    write_text(_digest_of(kept), hashlib.sha256(content).hexdigest(), private=True)


def _digest_of(kept: Path) -> Path:
    return kept.with_suffix(".sha256")


def _whole(kept: Path) -> bool:
    """Whether a library is as it was built: one that is cut short ends the process that loads it."""
    return _digest_of(kept).read_text() == hashlib.sha256(kept.read_bytes()).hexdigest()


def _loaded(path: Path, bind: Binding[Kernel]) -> Kernel | None:
    """Load a library; OSError where it cannot be loaded, None where it errs or lacks a function."""
    library = ctypes.CDLL(str(path))
    try:
        return bind(library)
    except AttributeError:
        return None


@cache
def _cpu() -> str | None:
    """What the first CPU is and can do, as Linux tells it."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except (OSError, ValueError):
        return None
    return "\n".join(line for line in first.splitlines() if line.split(":")[0].strip() in _CPU) or None
