"""fsl's wheel in an environment of its own."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class InstalledWheel:
    """An environment of its own with fsl's wheel in it; the dependencies are those of this environment."""

    python: Path
    packages: Path

    def run(self, *arguments: str, folder: Path, expect: int = 0) -> str:
        """Run this environment's Python in a folder; what it printed."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [self.python, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout


def site_packages(interpreter: str | Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return Path(found.stdout.strip())
