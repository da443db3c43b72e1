"""Messages as JSON: dataclasses written field by field, and read back strictly.

`msgspec` checks types and constraints (`Annotated` fields, see `fsl.messages.identifiers`) and builds the dataclasses.
It would pass over unknown and missing fields of a dataclass, and round a whole number to the nearest float; the second
look here refuses that.
"""

import json
import threading
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import msgspec

from fsl.quoting import one_line

T = TypeVar("T")
_CONVERTING = threading.Lock()  # msgspec learns a class when it first reads one, and threads that do so at once crash


def to_json(message: Any) -> str:
    """A dataclass as JSON, with every field under its name."""
    return json.dumps(asdict(message))


def from_json(text: str | bytes, kind: type[T]) -> T:
    """The dataclass of this kind that `to_json` wrote; ValueError, in one line, for anything else.

    Nothing is coerced: no text counts as a number, no truth value as a count. Each field must be there, and no other.
    """
    return from_values(json_values(text), kind)


def json_values(text: str | bytes) -> Any:
    """The plain values that a JSON text holds; ValueError, in one line, where it is none."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(one_line(str(error), 200)) from None


def from_values(values: Any, kind: type[T]) -> T:
    """As `from_json`, from the plain values of a JSON text."""
    try:
        with _CONVERTING:
            found = msgspec.convert(values, kind, strict=True)
        _refuse_differences(values, found, "$")
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(one_line(str(error), 200)) from None
    return found


def _refuse_differences(came: Any, found: Any, place: str) -> None:
    """ValueError where an object says less than what came, or something else."""
    if came is found:
        return
    if (names := _names(found.__class__)) is not None:
        if came.keys() != names:
            raise ValueError(f"{type(found).__name__} has the fields {', '.join(sorted(names))} - at `{place}`")
        for name in names:
            _refuse_differences(came[name], getattr(found, name), f"{place}.{name}")
    elif isinstance(found, dict):
        for name, value in found.items():
            _refuse_differences(came[name], value, f"{place}[...]")
    elif isinstance(found, tuple):
        for index, value in enumerate(found):
            _refuse_differences(came[index], value, f"{place}[{index}]")
    elif came != found:
        raise ValueError(f"{came!r} would be taken as {found!r} - at `{place}`")


@cache
def _names(kind: type) -> frozenset[str] | None:
    """The fields of a dataclass; None for another class."""
    return frozenset(field.name for field in fields(kind)) if is_dataclass(kind) else None
