"""From an import path in a configuration or a plan to the object it names."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

from fsl.errors import ConfigError, WireError

ALLOWED = ("fsl", "torch.optim")


class ClassPath(str):
    """A class's dotted path that holds the class too: one that is defined in a function cannot be imported by it."""

    kind: type


class Allowed(tuple[str, ...]):
    """The packages whose classes a plan may name, and single classes that a simulation brought along, by their paths.

    In a simulation, the process that makes the plans and those that carry them out belong to one user. So whatever
    class the run's own strategy names is in `named`, and a class that other processes cannot import (of a script, a
    notebook or a function) is taken from there. In a real federation nobody fills `named`.
    """

    named: Mapping[str, type]

    def __new__(cls, packages: Iterable[str], named: Mapping[str, type] | None = None) -> "Allowed":
        """`named` is kept as it is: who has it can add to it."""
        made = super().__new__(cls, packages)
        made.named = {} if named is None else named
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Allowed, (tuple(self), self.named)


def locate(path: str) -> Any:
    """The object at a dotted import path; ConfigError if there is none."""
    if isinstance(path, ClassPath):
        return path.kind
    if "<locals>" in path:
        raise ConfigError(f"'{path}' is defined in a function, where nobody can import it; move it out of the function")
    try:
        if "." not in path:
            raise ValueError("it has no module")
        return resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"there is no '{path}' to import ({error}); give the dotted path of a class") from None


def check_packages(allowed: Any) -> tuple[str, ...]:
    """The packages that a run allows besides fsl's; ConfigError for one that is not there to import."""
    listed = isinstance(allowed, Sequence) and not isinstance(allowed, str)
    if not listed or not all(isinstance(one, str) for one in allowed):
        raise ConfigError(f"allowed={allowed!r}: it must be a list of packages' names, as in ['my_package']")
    for name in allowed:
        if not _is_there(name):
            raise ConfigError(
                f"allowed={list(allowed)}: there is no package '{name}' to import; install it, start the command where "
                "it lies, or leave it out"
            )
    return tuple(allowed)


def _is_there(package: str) -> bool:
    try:
        return package in sys.modules or find_spec(package) is not None
    except (ImportError, ValueError):  # of what it lies in, or of a name that is none
        return False


def locate_allowed(path: str, allowed: Iterable[str] = ALLOWED) -> Any:
    """As `locate`, for a path that came in a message: only classes that are allowed, by their package or themselves."""
    if isinstance(allowed, Allowed) and path in allowed.named:
        return allowed.named[path]
    allowed = tuple(allowed)
    if not any(path.startswith(f"{package}.") for package in allowed):
        raise WireError(
            f"a message names '{path}', but this node takes classes only from: {', '.join(allowed)} (allowed=[...] of "
            "a run adds packages in simulation, allow=... of a node's configuration in a real federation)"
        )
    found = locate(str(path))
    if not isinstance(found, type):
        raise WireError(f"a message names '{path}', which is not a class")
    if not any(f"{found.__module__}.".startswith(f"{package}.") for package in allowed):
        raise WireError(f"a message names '{path}', a class of {found.__module__}, which is not allowed here")
    return found


def path_of(kind: type) -> ClassPath:
    """The dotted import path of a class."""
    path = ClassPath(f"{kind.__module__}.{kind.__qualname__}")
    path.kind = kind
    return path


def public_path(found: Any) -> ClassPath:
    """The shortest path by which a class can be imported from its own package: `fsl.codecs.Float16`."""
    module, name = str(getattr(found, "__module__", "")), str(getattr(found, "__qualname__", repr(found)))
    parts = module.split(".")
    packages = (".".join(parts[: i + 1]) for i in range(len(parts)))
    path = ClassPath(
        next((f"{p}.{name}" for p in packages if getattr(sys.modules.get(p), name, None) is found), f"{module}.{name}")
    )
    path.kind = found
    return path


def name_classes(named: dict[str, type], paths: Iterable[str]) -> None:
    """Add classes that a simulation's own strategy or settings name; what is no class is left to who builds it."""
    for path in paths:
        if path not in named or isinstance(path, ClassPath):
            found = locate(path)
            if isinstance(found, type):
                named[str(path)] = found
