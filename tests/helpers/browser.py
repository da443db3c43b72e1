"""Headless Chromium, where this machine has one."""

import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium() -> str:
    """The path of a Chromium; skips the test where none is found."""
    found = [path for name in _NAMES if (path := shutil.which(name))]
    found += map(str, (Path.home() / ".cache" / "ms-playwright").glob("chromium*/chrome-linux*/*headless*shell"))
    found += map(str, (Path.home() / ".cache" / "ms-playwright").glob("chromium*/chrome-linux*/chrome"))
    if not found:
        pytest.skip(f"no Chromium is installed: none of {', '.join(_NAMES)}, and none of Playwright's")
    return found[0]


def shown_document(address: str, folder: Path, width: int = 1200, height: int = 900, script_ms: int = 1500) -> str:
    """The document of a page after so many milliseconds of its scripts, as HTML."""
    command = [
        *(chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder}", f"--window-size={width},{height}", f"--virtual-time-budget={script_ms}"),
        *("--dump-dom", address),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
