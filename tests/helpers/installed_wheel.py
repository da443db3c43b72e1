"""fsl's wheel in an environment of its own."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.places import ROOT


@dataclass(frozen=True)
class InstalledWheel:
    """An environment of its own with fsl's wheel in it; the dependencies are those of this environment."""

    python: Path
    packages: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "InstalledWheel":
        """The one that is in this folder, or a new one."""
        python = folder / "env" / "bin" / "python"
        if (folder / "installed").exists():
            return cls(python, site_packages(python))
        ignored = shutil.ignore_patterns(".*", "build", "outputs", "multirun", "site", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, folder / "source", ignore=ignored)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        build = [*pip, "wheel", str(folder / "source"), "--no-deps", "--no-build-isolation", "-w", str(folder)]
        subprocess.run(build, check=True, timeout=300)
        (wheel,) = folder.glob("*.whl")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True, timeout=120)
        packages = site_packages(python)
        subprocess.run([*pip, "install", "--no-deps", "--target", str(packages), str(wheel)], check=True, timeout=300)
        here = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "dependencies.pth").write_text("\n".join([*here, ""]))
        (folder / "installed").touch()
        return cls(python, packages)

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
