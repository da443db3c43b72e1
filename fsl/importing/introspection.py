"""What Python knows of objects, classes and code: attributes, defaults, where a module is from."""

import functools
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Iterable
from os import sep
from pathlib import Path
from typing import Any

from fsl.importing.import_paths import path_of

PYTHONS = ("training", "__wrapped__", "__orig_class__", "__dict__", "__weakref__", "_abc_impl")  # no user's attributes

_INSTALLED = tuple(
    f"{folder}{sep}"
    for folder in {*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")), str(Path(__file__).parent)}
)


_KNOWN = frozenset({"fsl", "torch", "numpy", "flwr", "ray", "opacus", "hydra", "omegaconf"})  # wherever they lie
_SHELVES = frozenset({"site-packages", "dist-packages"})


def attributes(value: object) -> dict[str, Any] | None:
    """Returns an object's attributes, slots included, in order of creation, no cached values; None if it has none."""
    kind = type(value)
    slots = [name for base in kind.__mro__ for name in _names(vars(base).get("__slots__", ()))]
    found = {name: getattr(value, name) for name in slots if name not in PYTHONS and hasattr(value, name)}
    if hasattr(value, "__dict__"):
        found |= {n: v for n, v in vars(value).items() if n not in PYTHONS}
    elif not slots:
        return None
    return {
        n: v
        for n, v in found.items()
        if not isinstance(inspect.getattr_static(kind, n, None), functools.cached_property)
    }


def _names(slots: str | Iterable[str]) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def own_words(value: object) -> str:
    """An object that shows no attributes, by what it says of itself, without an address."""
    said = re.sub(r"( object)? at 0x[0-9a-fA-F]+", "", repr(value))
    return path_of(type(value)) if said == repr(object()) or said.startswith("<") else f"{path_of(type(value))} {said}"


def defaults_of(kind: type) -> dict[str, Any]:
    """A constructor's arguments with their defaults, in order."""
    try:
        parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    except (TypeError, ValueError):
        return {}
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


@functools.cache
def is_installed(name: str | None) -> bool:
    """Whether a module belongs to Python, an installed package or fsl, and not to the user."""
    package = (name or "").partition(".")[0]
    if package in _KNOWN or package in sys.stdlib_module_names - {"__main__"}:
        return True
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    # A path may lead to packages of another environment, which are somebody else's all the same.
    return file is not None and (str(file).startswith(_INSTALLED) or not _SHELVES.isdisjoint(Path(file).parts))


def functions_of(member: object) -> list[types.FunctionType]:
    """The functions behind a member of a class."""
    if isinstance(member, property):
        return [f for f in (member.fget, member.fset) if isinstance(f, types.FunctionType)]
    member = getattr(member, "__func__", member)
    member = getattr(member, "func", member) if isinstance(member, functools.cached_property) else member
    return [member] if isinstance(member, types.FunctionType) else []


def is_made(kind: type, name: str) -> bool:
    """Whether a member of a class is Python's, and no user's: its module, or what the dataclass decorator made."""
    if name in ("__module__", "__doc__", "__qualname__", "__firstlineno__", "__static_attributes__", *PYTHONS):
        return True
    made = inspect.getattr_static(kind, name)
    if "__dataclass_fields__" not in vars(kind):
        return False
    return name.startswith("__") and getattr(getattr(made, "__code__", None), "co_filename", "<string>") == "<string>"


def is_filled(cell: Any) -> bool:
    """Whether a closure's cell has a value yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
