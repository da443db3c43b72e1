"""Writes a folder of several files whole or not at all, and over nobody else's files."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsl.errors import ConfigError, RunError
from fsl.files import sync


@contextmanager
def written_whole(folder: str | os.PathLike[str], mark: str, overwrite: bool) -> Iterator[Path]:
    """Give a new folder beside `folder` to write into, which takes its place when all is written.

    `mark`: the file by which a folder of this kind is known. ConfigError, before anything is written, where `folder`
    has files already: one of this kind is replaced with `overwrite`, one of any other kind never. RunError where the
    disk does not take the files.
    """
    target = _free(folder, mark, overwrite)
    new = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.new")
    try:
        new.mkdir(parents=True)
        yield new
        sync(path for path in new.rglob("*") if path.is_file())
        _take_place(new, target)
    except OSError as error:
        raise RunError(f"{target} cannot be written ({error.strerror or error}); choose another folder") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _free(folder: str | os.PathLike[str], mark: str, overwrite: bool) -> Path:
    if not isinstance(folder, str | os.PathLike) or not str(folder):
        raise ConfigError(f"folder={folder!r}: give the path of a folder, as a text or a pathlib.Path")
    target = Path(os.path.abspath(folder))
    if not target.exists():
        return target
    if not target.is_dir():
        raise ConfigError(f"{folder} is a file; give the path of a folder")
    if any(target.iterdir()) and not (target / mark).is_file():
        raise ConfigError(f"{folder} has files of another kind (no {mark}), which stay; choose another folder")
    if any(target.iterdir()) and not overwrite:
        raise ConfigError(f"{folder} has a {mark} already; choose another folder, or replace it with overwrite=True")
    return target


def _take_place(new: Path, target: Path) -> None:
    """Put a folder in another's place; the old one comes back where that fails."""
    old = new.with_suffix(".old")
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
