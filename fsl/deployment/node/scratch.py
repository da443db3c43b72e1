"""Makes a folder of this user's own among temporary files; quick to import."""

import os
import tempfile
from pathlib import Path

from fsl.errors import ConfigError


def scratch_folder() -> Path:
    """Make a folder of this user's own among temporary files; ConfigError where somebody else has made it."""
    folder = Path(tempfile.gettempdir()) / f"fsl-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not folder.is_dir() or found.st_mode & 0o077:
        raise ConfigError(f"{folder} is not this user's own folder (mode 0700); remove it, or set TMPDIR")
    return folder
