"""Files and folders that only their owner may read: keys, and what is kept of people's data."""

import logging
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsl.errors import ConfigError

log = logging.getLogger(__name__)
_OTHERS = 0o077  # what group and others may
_ACL = "system.posix_acl_access"
_ACL_OWNER, _ACL_USER, _ACL_MASK = 0x01, 0x02, 0x10  # kinds of entries


def private_folder(folder: Path) -> Path:
    """Make a folder, and what is missing above it, that only its owner may enter; one that is there stays as it is."""
    missing = [folder]
    while not missing[-1].parent.exists() and missing[-1].parent != missing[-1]:
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        try:
            each.mkdir(mode=0o700)
        except FileExistsError:
            if not each.is_dir():
                raise
    return folder


def cache_folder() -> Path:
    """Returns this user's folder for what can be made anew: `FSL_CACHE`, ~/.cache/fsl by default."""
    return Path(os.environ.get("FSL_CACHE") or os.path.expanduser("~/.cache/fsl"))


def only_ours(path: Path) -> bool:
    """Whether a file or folder is this user's own, and nobody else may write to it; OSError where it is not there."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def own_folder(name: str, folder: Path) -> Path:
    """A folder that is this user's alone: made, or closed to others with all that lies in it, which the log tells.

    ConfigError for one that is somebody else's, or that everybody may write to (as /tmp is): `name` says in which
    setting it stands.
    """
    try:
        private_folder(folder)
        found = folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_ISVTX | stat.S_IWOTH):
            raise ConfigError(
                f"{name}={folder}: it is not this user's own folder (mode {stat.S_IMODE(found.st_mode):04o}), and "
                "private data are to lie in it; name another, or a folder inside of it"
            )
        if closed := sum(map(_close, [folder, *_inside(folder)])):
            log.warning(
                "%s=%s: %d files and folders were open to other users, and are closed now", name, folder, closed
            )
    except OSError as error:
        raise ConfigError(f"{name}={folder} cannot be used as a folder ({error.strerror}); choose another") from None
    return folder


def close_file(path: Path) -> None:
    """Take others' rights from a file that an earlier version left open; nothing where it is not there, or not ours."""
    try:
        _close(path)
    except OSError:
        log.warning("%s is open to other users and cannot be closed", path)


def read_private(name: str, path: Path) -> bytes:
    """What a private key's file holds; ConfigError where it cannot be read, and where others may read or change it.

    Root may. An ACL that gives the file to this user alone is fine: so systemd hands over credentials (mode 0440).
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            mode = stat.S_IMODE(found.st_mode)
            others = _others_by_acl(file.fileno(), found.st_uid)
            if mode & _OTHERS if others is None else others:
                remedy = f"chmod 600 {path}" if others is None else f"setfacl -b {path} && chmod 600 {path}"
                raise ConfigError(f"{name}={path}: other users may read or change this key (mode {mode:04o}); {remedy}")
            return file.read()
    except OSError as error:
        raise ConfigError(f"{name}={path}: it cannot be read ({error.strerror}); name a private key's file") from None


@contextmanager
def private_umask() -> Iterator[None]:
    """Whatever this process makes meanwhile, only its owner may read: for libraries that write files of their own."""
    before = os.umask(_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def _others_by_acl(descriptor: int, owner: int) -> bool | None:
    """Returns whether an open file's ACL lets others in; None without an ACL. With one, the mode tells of no group."""
    try:
        acl = os.getxattr(descriptor, _ACL)
    except (OSError, AttributeError):  # there is none, or this file system or kernel knows none
        return None
    ours = os.geteuid()
    for kind, rights, whose in struct.iter_unpack("<HHI", acl[4:]):
        mine = (kind == _ACL_USER and whose == ours) or (kind == _ACL_OWNER and owner in (0, ours))
        if rights and kind != _ACL_MASK and not mine:
            return True
    return False


def _inside(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        for each in (*folders, *files):
            yield Path(here) / each


def _close(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    if not plain or not found.st_mode & _OTHERS or found.st_uid != os.geteuid():
        return False
    path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    return True
