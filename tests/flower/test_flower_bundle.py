"""What `flwr run .` sends to the nodes: fsl and what it needs, and nothing else."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from io import BytesIO

import pytest
from flwr.cli.build import build_fab_from_disk

import fsl
from tests.helpers.places import ROOT

KINDS = {"py", "toml", "yaml", "LICENSE", "info/CONTENT"}

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # of a library that Flower uses


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> bytes:
    tree = tmp_path_factory.mktemp("tree") / "fsl-flower"
    ignored = shutil.ignore_patterns(".*", "build", "outputs", "multirun", "site", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    shutil.copy(ROOT / ".gitignore", tree)
    return build_fab_from_disk(tree)


def test_there_is_one_version():
    # Flower reads the one, a bundle has only the other.
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == fsl.__version__


def test_the_bundle_holds_the_library_and_no_tests(bundle):
    names = set(zipfile.ZipFile(BytesIO(bundle)).namelist())
    rooms = {name.split("/")[0] for name in names if "/" in name}
    assert rooms == {"fsl", "strategies", "configs", "simulations", ".info"}
    assert {
        "configs/config.yaml",
        "fsl/messages/messages_pb2.py",
        "strategies/split_strategy.py",
        "pyproject.toml",
    } <= names
    kinds = {name.rsplit(".", 1)[-1] for name in names}
    assert kinds <= KINDS, kinds - KINDS  # sources, and nothing beside them
    # Flower stores them uncompressed.
    sources = sum((ROOT / name).stat().st_size for name in names if (ROOT / name).is_file())
    assert sources < len(bundle) < 1.1 * sources
    assert len(bundle) < 10_000_000  # as much as Flower's SuperLink takes


@pytest.mark.slow
def test_the_bundle_runs_without_an_installed_fsl(bundle, tmp_path):
    zipfile.ZipFile(BytesIO(bundle)).extractall(tmp_path)
    code = "import fsl, fsl.strategies.splitfed, fsl.simulations.overrides as o; print(fsl.__file__)"
    code += "; o.check_overrides(['strategy=sglr'])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "fsl" / "__init__.py")
