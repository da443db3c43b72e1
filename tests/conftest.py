import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a Ray of its own: Flower's engine joins what it finds there, and waits for ever if that ends.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")  # short: a socket's path has 107 characters at most

import pytest
import torch
from torch import nn

from fsl.data import TaskData, TensorExamples

CIFAR10 = Path(os.environ.get("FSL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10"


def pytest_sessionfinish():
    if "PYTEST_XDIST_WORKER" in os.environ:
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


@pytest.fixture(autouse=True)
def one_thread():
    """One thread and two do not agree to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def no_network_thread():
    """What a file's tests opened, they closed."""
    before = set(threading.enumerate())
    yield
    left = [t for t in set(threading.enumerate()) - before if t.name.startswith(("edge-", "uplink"))]
    for thread in left:
        thread.join(10)
    assert not [t.name for t in left if t.is_alive()], "a test left its network's threads behind"


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    if not CIFAR10.is_dir():
        pytest.skip(f"CIFAR-10's Parquet files are not in {CIFAR10}; set FSL_DATA to the folder above cifar10/")
    return CIFAR10


def small_task(samples: int = 96, classes: int = 4, seed: int = 0) -> TaskData:
    """Learnable 1x8x8 images: a class is a brighter quadrant."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (samples + 40,), generator=generator)
    inputs = torch.randn(samples + 40, 1, 8, 8, generator=generator)
    for label in range(classes):
        row, column = 4 * (label // 2), 4 * (label % 2)
        inputs[targets == label, :, row : row + 4, column : column + 4] += 1.5
    examples = TensorExamples(inputs, targets)
    rows = torch.arange(len(targets))
    return TaskData("quadrants", examples.subset(rows[:samples]), examples.subset(rows[samples:]), classes)


def small_model(norm: str = "none", dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    """Two convolutions and a classifier, to be cut after `pool`; the layer behind the cut works in place."""
    torch.manual_seed(seed)

    def normed(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if norm == "batch" else []

    drop = [nn.Dropout(dropout)] if dropout else []
    model = nn.Sequential()
    model.add_module("conv", nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *normed(4), nn.ReLU(), *drop))
    model.add_module("pool", nn.MaxPool2d(2))
    model.add_module("relu", nn.ReLU(inplace=True))
    model.add_module("conv2", nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), *normed(8), nn.ReLU(inplace=True), *drop))
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(8 * 4 * 4, 4)))
    return model


@pytest.fixture(scope="module")
def ray_cluster():
    """One small Ray for a file's tests; a test's Grid joins it."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture
def no_ray():
    """Flower's engine starts and ends a Ray of its own."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()


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


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory) -> InstalledWheel:
    root, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "build", "outputs", "multirun", "site", "*.egg-info", "__pycache__")
    shutil.copytree(root, folder / "source", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", str(folder / "source"), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True, timeout=120)
    python = folder / "env" / "bin" / "python"
    packages, here = _site_packages(python), _site_packages(sys.executable)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(packages), str(wheel)], check=True, timeout=300)
    (packages / "dependencies.pth").write_text(f"{here}\n")
    return InstalledWheel(python, packages)


def _site_packages(interpreter: str | Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return Path(found.stdout.strip())
