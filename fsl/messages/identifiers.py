"""Types and checks for names in messages, so that no name from the network can escape its folder or address.

A type for a message's field, which `fsl.messages.strict_json` checks, and a function for a single value.
"""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fsl.errors import WireError

_OWNER = r"(?:edge|device)-(?:0|[1-9][0-9]{0,9})"
_HOST = r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?)"
_PORT = r"(?!0+\Z)(?:[0-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_NAME = re.compile(r"[\w<][\w.+<>-]*(?:/[\w<][\w.+<>-]*)*")  # of what a store keeps: no part begins with a dot

# A device's, an edge's or a round's number, or a count: a whole number from 0 on, below 2**31, and no bool.
Count = Annotated[int, Meta(ge=0, lt=1 << 31)]
# Whole bytes a second.
Rate = Annotated[int, Meta(ge=0, lt=1 << 53)]
# A number of things of which there is at least one.
Positive = Annotated[int, Meta(gt=0)]
# Whose state a node stores: `device-3` or `edge-0`.
Owner = Annotated[str, Meta(pattern=rf"\A{_OWNER}\Z")]
# `host:port`, of a host by name or number; no path of a socket and nothing else that gRPC would take.
Address = Annotated[str, Meta(pattern=rf"\A{_HOST}:{_PORT}\Z")]
# Bytes in small hexadecimal digits, up to 4096.
Hex = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{2})*\Z", max_length=8192)]
# A key of 32 bytes in small hexadecimal digits.
HexKey = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
# The same, or nothing where there is no key.
OptionalHexKey = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]
# A digest of contents, or nothing where there are none.
Digest = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{16})?\Z")]


def is_count(value: Any) -> bool:
    """Whether a value is a `Count`."""
    return _is(value, Count)


def is_owner(value: Any) -> bool:
    """Whether a value is an `Owner`."""
    return _is(value, Owner)


def is_address(value: Any) -> bool:
    """Whether a value is an `Address`."""
    return _is(value, Address)


def is_hex(value: Any) -> bool:
    """Whether a value is bytes as `Hex`."""
    return _is(value, Hex)


def is_hex_key(value: Any) -> bool:
    """Whether a value is a `HexKey`."""
    return _is(value, HexKey)


def is_digest(value: Any) -> bool:
    """Whether a value is a `Digest`."""
    return _is(value, Digest)


def is_label(value: Any) -> bool:
    """Whether a value is a short text that is shown to people: without control characters, of at most 200."""
    return isinstance(value, str) and len(value) <= 200 and value.isprintable()


def check_kept(owner: str, version: int) -> None:
    """Raise WireError unless `owner` can name a stored state and `version` its generation (a round, from 0)."""
    if not _NAME.fullmatch(owner) or ".." in owner or len(owner) > 400:
        raise WireError(f"{owner[:100]!a} is no name of what a node keeps")
    if not is_count(version):
        raise WireError(f"{ascii(version)[:40]} is no generation of what a node keeps: it is a round's number")


def _is(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, ValueError):  # ValueError: of a text that UTF-8 cannot have
        return False
    return True
