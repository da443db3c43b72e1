"""From an import path in a configuration or a plan to the object it names."""

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from fsl.errors import ConfigError, WireError

ALLOWED = ("fsl", "torch.optim")


def locate(path: str) -> Any:
    """The object at a dotted import path; ConfigError if there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"there is no '{path}' to import ({error}); give the dotted path of a class") from None


def locate_allowed(path: str, allowed: Iterable[str] = ALLOWED) -> Any:
    """As `locate`, for a path that came in a message: only classes inside the allowed packages."""
    allowed = tuple(allowed)
    if not any(path.startswith(f"{package}.") for package in allowed):
        raise WireError(f"a message names '{path}', but this node takes classes only from: {', '.join(allowed)}")
    found = locate(path)
    if not isinstance(found, type):
        raise WireError(f"a message names '{path}', which is not a class")
    if not any(f"{found.__module__}.".startswith(f"{package}.") for package in allowed):
        raise WireError(f"a message names '{path}', a class of {found.__module__}, which is not allowed here")
    return found


def path_of(kind: type) -> str:
    """The dotted import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def public_path(found: Any) -> str:
    """The shortest path by which a class can be imported from its own package: `fsl.codecs.Float16`."""
    module, name = str(getattr(found, "__module__", "")), str(getattr(found, "__qualname__", repr(found)))
    parts = module.split(".")
    packages = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return next(
        (f"{p}.{name}" for p in packages if getattr(sys.modules.get(p), name, None) is found), f"{module}.{name}"
    )
