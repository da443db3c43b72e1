"""Binds each device's, edge's and top's number to one SuperNode's key, in a table like SSH's known_hosts.

A line names devices and edges and the public key of the SuperNode that hosts them, as `ssh-keygen` and `fsl-certs`
write it: `device-0,edge-1 ecdsa-sha2-nistp384 AAAA... any comment`; `devices-0-9` are ten, and `top-1` is the server
above edge 1. Flower proves that a node
holds the key that it is registered by, so a number answers to one key only.
"""

import base64
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_ssh_public_key,
)

from fsl.errors import ConfigError, TrustError
from fsl.files import write_text
from fsl.wire.tokens import public_bytes

log = logging.getLogger(__name__)
TABLE = "members.txt"
_NAME = re.compile(r"(device|edge|top)-(\d{1,9})|devices-(\d{1,9})-(\d{1,9})")
_MOST = 1_000_000  # devices in one range


class Enrolled:
    """The table of a run, which the cloud reads anew whenever it looks for nodes.

    `table`: the operator's file, which alone counts; it refuses everybody else. Without one, the first key that answers
    for a number goes into `first_use` and counts from then on. With neither, it counts while this object lives.
    """

    def __init__(self, table: Path | None, first_use: Path | None = None):
        self.table = table
        self.first_use = first_use
        self._keys: dict[str, bytes] = {}  # DER, by name
        self._read: str | None = None  # the text that they are from
        self._fault = ""  # what is wrong with the present text, as the log says
        self._begun = False

    def read(self) -> bool:
        """Read the file anew where it has changed; returns whether the keys are others now.

        ConfigError for an unreadable or empty file the first time. Later the keys of before go on to count, and the
        log says why: whoever edits the table in the middle of a run ends no run by it.
        """
        first, self._begun = not self._begun, True
        path = self.table or self.first_use
        if path is None or (self.table is None and not path.exists()):
            return False
        try:
            text = _text(path)
            if text == self._read:
                return False
            keys = _parsed(path, text)
            if not keys:
                raise ConfigError(self._empty(path))
        except ConfigError as error:
            if first:
                raise
            if str(error) != self._fault:
                log.warning("%s; the keys of before go on to count", error)
            self._fault = str(error)
            return False
        changed = keys != self._keys
        self._read, self._keys, self._fault = text, keys, ""
        return changed

    def _empty(self, path: Path) -> str:
        if self.table is None:
            return f"{path} names nobody; restore it, or delete it so that the first key of each number counts"
        return (
            f"deployment.members={path}: it names no device and no edge, so that nobody could take part; fsl-certs "
            "writes such a table, and deployment.members=null lets the first key of each number count"
        )

    def refuse(self, names: Iterable[str], key: bytes) -> None:
        """Raise TrustError where one of these names has another key (DER), or is not in the operator's table."""
        for name in names:
            bound = self._keys.get(name)
            if bound is None and self.table is not None:
                raise TrustError(
                    f"{name} is not in {self.table} (deployment.members); if the node with key {fingerprint_of(key)} "
                    f"is to host it, add the line: {name} {_ssh(key)}"
                )
            if bound is not None and bound != key:
                where = self.table or self.first_use or "this run"
                raise TrustError(
                    f"{name} belongs to key {fingerprint_of(bound)} by {where}, and this node's key is "
                    f"{fingerprint_of(key)}; if the key was replaced, put the new one into that line: "
                    f"{name} {_ssh(key)}"
                )

    def note(self, names: Iterable[str], key: bytes) -> list[str]:
        """Bind these names to this key from now on; returns the new ones."""
        new = [name for name in names if name not in self._keys]
        if new and self.table is None:
            self._keys |= dict.fromkeys(new, key)
            if self.first_use is not None:
                write_table(self.first_use, self._keys)
        return new


def read_table(path: Path) -> dict[str, bytes]:
    """Read a table's keys (DER) by name; ConfigError, with the line, for an invalid one."""
    return _parsed(path, _text(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"deployment.members={path}: it cannot be read ({reason})") from None


def _parsed(path: Path, text: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        names, _, rest = line.strip().partition(" ")
        try:
            key = _der(rest)
            listed = [name for text in names.split(",") for name in _names(text)]
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number}: {error}; a line is 'device-0 ecdsa-sha2-nistp384 AAAA...': names and a public "
                "key as fsl-certs writes it"
            ) from None
        for name in listed:
            if name in found:
                raise ConfigError(f"{path}, line {number}: {name} has a line already; leave one")
            found[name] = key
    return found


def write_table(path: Path, keys: Mapping[str, bytes]) -> None:
    """Write a table with one line for each key, which lists its names."""
    names: dict[bytes, list[str]] = {}
    for name, key in keys.items():
        names.setdefault(key, []).append(name)
    lines = [f"{','.join(those)} {_ssh(key)}\n" for key, those in names.items()]
    write_text(path, "# whose key each device and edge answers by; see docs/admission.md\n" + "".join(lines))


def add_nodes(path: Path, keys: Mapping[str, Path]) -> None:
    """Add nodes to a table, or replace their entries; `keys`: public key files by name."""
    known = read_table(path) if path.exists() else {}
    for name, file in keys.items():
        known |= dict.fromkeys(_names(name), _der(file.read_text(encoding="utf-8")))
    write_table(path, known)


def fingerprint_of(key: bytes) -> str:
    """Returns a public key's fingerprint as `ssh-keygen -l` prints it: SHA256:..."""
    blob = base64.b64decode(_ssh(key).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def names_of(devices: Iterable[int], edge: int | None, top: int | None = None) -> list[str]:
    """Returns the names of these devices, this edge and the server above edge `top` in a table."""
    servers = ((kind, number) for kind, number in (("edge", edge), ("top", top)) if number is not None)
    return [f"device-{device}" for device in devices] + [f"{kind}-{number}" for kind, number in servers]


def _names(text: str) -> list[str]:
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text[:40]}' names no device, edge or top (device-0, devices-0-9, edge-1, top-1)")
    if match[1]:
        return [f"{match[1]}-{int(match[2])}"]
    first, last = int(match[3]), int(match[4])
    if not first <= last < first + _MOST:
        raise ValueError(f"'{text}' is no range of devices")
    return names_of(range(first, last + 1), None)


def _der(text: str) -> bytes:
    words = text.split()
    try:
        key = load_ssh_public_key(" ".join(words[:2]).encode())
    except (ValueError, UnsupportedAlgorithm, IndexError):
        raise ValueError("there is no public key behind the names") from None
    if not isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
        raise ValueError("its key is neither Ed25519 nor of a NIST curve")
    return public_bytes(key)


def _ssh(key: bytes) -> str:
    loaded = load_der_public_key(key)
    try:
        return loaded.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    except (ValueError, UnsupportedAlgorithm):
        raise TrustError("a node's registered key is neither Ed25519 nor of a NIST curve") from None
