"""From an import path in a configuration or a plan to the object it names."""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from fsl.errors import ConfigError, WireError

ALLOWED = ("fsl", "torch.optim")
# Rooms of fsl whose classes open ports, write files or attack: none is built because a message names it.
_CLOSED = ("fsl.attacks", "fsl.deployment", "fsl.flower", "fsl.simulations", "fsl.trackers", "fsl.wire")
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_LONGEST = 200  # characters of a path


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
        """Keeps the mapping `named` itself, not a copy, so that its holder can add classes later."""
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


def locate_allowed(path: str, allowed: Iterable[str] = ALLOWED, kind: type | tuple[type, ...] = object) -> Any:
    """As `locate`, for a path that came in a message: only classes of this `kind`, of packages that are allowed.

    WireError for everything else: functions, methods and objects, classes that an allowed package only imports, and
    fsl's own classes that are not made for plans. Nothing outside the allowed packages is imported for a message.
    """
    if isinstance(allowed, Allowed) and path in allowed.named:
        found = allowed.named[path]
        if not issubclass(found, kind):
            raise WireError(f"a message names {shown(path)}, and only {named_kind(kind)} can be used there")
        return found
    allowed = tuple(allowed)
    if not within(path, allowed):
        raise WireError(
            f"a message names {shown(path)}, but this node takes classes only from: {', '.join(allowed)} "
            "(allowed=[...] of a run adds packages in simulation, allow=... of a node's configuration in a real "
            "federation)"
        )
    found = _walk(path)
    if not isinstance(found, type):
        raise WireError(
            f"a message names {shown(path)}, which is not a class; only {named_kind(kind)} can be used there"
        )
    if not within(f"{found.__module__}.{found.__name__}", allowed):
        raise WireError(f"a message names {shown(path)}, a class of {found.__module__}, which is not allowed here")
    if not issubclass(found, kind) or inspect.isabstract(found):
        raise WireError(f"a message names {shown(path)}, and only {named_kind(kind)} can be used there")
    return found


def within(path: Any, packages: Iterable[str]) -> bool:
    """Whether a text is an import path inside these packages that a message may name: no dunders, no closed rooms."""
    if not isinstance(path, str) or len(path) > _LONGEST or not _PATH.fullmatch(path):
        return False
    if any(part.startswith("__") for part in path.split(".")):  # __main__ would run a program
        return False
    inside = any(path.startswith(f"{package}.") for package in packages)
    return inside and not any(path.startswith(f"{room}.") for room in _CLOSED)


def shown(path: Any) -> str:
    """Returns a path from a message for an error text: at most 100 characters, quoted, without control characters."""
    text = path if isinstance(path, str) else repr(path)
    return ascii(text[:100])


def named_kind(kind: type | tuple[type, ...]) -> str:
    """A kind of classes in words."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return "a class of " + " or ".join("any kind" if k is object else str(public_path(k)) for k in kinds)


def _walk(path: str) -> Any:
    """The object at a path, through modules and classes alone: no attribute of an object is computed on the way."""
    parts = path.split(".")
    found: Any = None
    for count, part in enumerate(parts, start=1):
        if found is None or isinstance(found, ModuleType):
            found = _member(found, part, ".".join(parts[:count]))
        elif isinstance(found, type):
            found = inspect.getattr_static(found, part, None)
        else:
            found = None
        if found is None:
            raise WireError(f"a message names {shown(path)}, which is not there; both ends need the same packages")
    return found


def _member(module: ModuleType | None, name: str, path: str) -> Any:
    if module is not None and (found := getattr(module, name, None)) is not None:
        return found
    try:
        return import_module(path)
    except ImportError:
        return None


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
