"""Decides which bundles (Flower's FABs) a node runs: those that its owner listed, and those without code."""

import hashlib
import re
import tomllib
import zipfile
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from fsl.errors import ConfigError, TrustError

COMPONENTS = {
    "serverapp": "fsl.simulations.flower_app:server",
    "clientapp": "fsl.simulations.flower_app:client",
}
_PROJECT, _CONTENT = "pyproject.toml", ".info/CONTENT"
_WORDS = {_PROJECT, _CONTENT, "README.md", "LICENSE"}  # the only files that a bundle without code may hold
_LARGEST = 64 * 1024  # bytes of such a bundle's table
_LARGEST_TEXT = 1024 * 1024  # bytes of its other files
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,99}", re.ASCII)
# Keys of a table that make Flower or an installer fetch, build or run something.
_BRINGS_CODE = ("dependencies", "optional-dependencies", "dynamic", "scripts", "gui-scripts", "entry-points")


def hashes(given: Collection[str]) -> frozenset[str]:
    """Check the hashes that an owner listed; ConfigError for an invalid one."""
    for one in given:
        if not re.fullmatch(r"[0-9a-f]{64}", one):
            raise ConfigError(
                f"--allow-bundle {one}: a bundle's hash is the 64 hexadecimal digits, in small letters, that "
                "`sha256sum` tells of the file that `flwr build` writes"
            )
    return frozenset(given)


def hash_of(bundle: bytes) -> str:
    """Returns the hash by which an owner lists a bundle: SHA-256 of its file, 64 hexadecimal digits."""
    return hashlib.sha256(bundle).hexdigest()


def check(bundle: bytes, allowed: Collection[str]) -> tuple[str, str]:
    """Returns the id ("publisher/name") and version of a bundle's app, if its owner's list `allowed` lets it run.

    TrustError, in one line, names the refused hash, the reason, and how the owner allows it.
    """
    bundle_hash = hash_of(bundle)
    try:
        with zipfile.ZipFile(BytesIO(bundle)) as archive:
            table = _table(archive)
            if bundle_hash not in allowed:
                _refuse_code(archive, table)
        return _app_of(table)
    except TrustError as error:
        reason = str(error)
    except Exception as error:  # whatever a hostile archive makes the library raise
        reason = f"it is no bundle that can be read ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    raise TrustError(
        f"this node refuses bundle {bundle_hash}: {reason}. Its owner allows code by its hash "
        f"(fsl-supernode --allow-bundle {bundle_hash}); a run that brings none is sent by `fsl-federation app`"
    )


def check_installed(folder: Path, bundle: bytes) -> None:
    """Raise TrustError where a bundle's folder holds anything besides the bundle, such as files of an earlier one."""
    with zipfile.ZipFile(BytesIO(bundle)) as archive:
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if (path.is_dir() and not path.is_symlink()) or "__pycache__" in path.parts:
                continue
            if path.is_symlink() or name not in archive.namelist() or path.read_bytes() != archive.read(name):
                raise TrustError(f"{path} is not what its bundle says; delete {folder} on this node")


def _table(archive: zipfile.ZipFile) -> Mapping[str, Any]:
    names = archive.namelist()
    if len(set(names)) < len(names):
        raise TrustError("it holds a file twice")
    if archive.getinfo(_PROJECT).file_size > _LARGEST:
        raise TrustError(f"its {_PROJECT} is larger than {_LARGEST} bytes")
    return tomllib.loads(archive.read(_PROJECT).decode())


def _app_of(table: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the app's id and version; TrustError for names that lead out of the folder that Flower makes of them."""
    publisher, name, version = (
        table["tool"]["flwr"]["app"]["publisher"],
        *map(table["project"].get, ("name", "version")),
    )
    for word in (publisher, name, version):
        if not (isinstance(word, str) and _WORD.fullmatch(word)):
            raise TrustError(f"{ascii(word)[:60]} is no name or version of an app")
    return f"{publisher}/{name}", version


def _refuse_code(archive: zipfile.ZipFile, table: Mapping[str, Any]) -> None:
    """Raise TrustError for whatever might bring code that is not installed on the node."""
    if more := sorted(set(archive.namelist()) - _WORDS):
        raise TrustError(f"it brings files of its own ({', '.join(more)[:100]})")
    if large := [one.filename for one in archive.infolist() if one.file_size > _LARGEST_TEXT]:
        raise TrustError(f"its {large[0]} is larger than {_LARGEST_TEXT} bytes")
    components = table["tool"]["flwr"]["app"]["components"]
    if components != COMPONENTS:
        raise TrustError(f"it runs {str(components.get('clientapp'))[:60]!r}, not fsl's {COMPONENTS['clientapp']!r}")
    if more := sorted({*table} - {"project", "tool"} | {*table["tool"]} - {"flwr"}):
        raise TrustError(f"its {_PROJECT} has tables beside [project] and [tool.flwr] ({', '.join(more)[:60]})")
    if more := [name for name in _BRINGS_CODE if table["project"].get(name)]:
        raise TrustError(f"its {_PROJECT} asks for more to be installed ({', '.join(more)})")
