"""What names things in messages: checked where it comes in, so that no name leads out of the place that it is for."""

import re
from typing import Any

from fsl.errors import WireError

_LARGEST = 1 << 31
_OWNER = re.compile(r"(?:edge|device)-(?:0|[1-9]\d{0,9})", re.ASCII)
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?):\d{1,5}", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-f]{2})*", re.ASCII)
_NAME = re.compile(r"[\w<][\w.+<>-]*(?:/[\w<][\w.+<>-]*)*")  # of what a store keeps: no part begins with a dot


def is_count(value: Any) -> bool:
    """A device's, an edge's or a round's number, or a count: a whole number from 0 on, below 2**31, and no bool."""
    return type(value) is int and 0 <= value < _LARGEST


def is_owner(value: Any) -> bool:
    """What keeps a state on a node, as `device-3` or `edge-0`."""
    return isinstance(value, str) and _OWNER.fullmatch(value) is not None


def is_address(value: Any) -> bool:
    """`host:port`, of a host by name or number; no path of a socket and nothing else that gRPC would take."""
    return (
        isinstance(value, str) and _ADDRESS.fullmatch(value) is not None and 0 < int(value.rpartition(":")[2]) < 65536
    )


def is_hex(value: Any, *sizes: int) -> bool:
    """Bytes in small hexadecimal digits: of one of these sizes, or with none given up to 4096."""
    if not isinstance(value, str) or len(value) > 8192 or not _HEX.fullmatch(value):
        return False
    return not sizes or len(value) // 2 in sizes


def is_label(value: Any) -> bool:
    """A short text that is shown to people: without control characters, of at most 200."""
    return isinstance(value, str) and len(value) <= 200 and value.isprintable()


def check_kept(owner: str, version: int) -> None:
    """WireError for what cannot be the name and the generation of something that a store keeps."""
    if not _NAME.fullmatch(owner) or ".." in owner or len(owner) > 400:
        raise WireError(f"{owner[:100]!a} is no name of what a node keeps")
    if not is_count(version):
        raise WireError(f"{ascii(version)[:40]} is no generation of what a node keeps: it is a round's number")
