"""The page on a strategy of one's own, done as it says: against the wheel, in a folder of the user's."""

import json
import re
from pathlib import Path

import pytest
import torch
from fsl.simulations.fsl_report import command as report
from fsl.simulations.fsl_simulate import command
from torch import nn
from torch.utils.data import TensorDataset

import fsl
from tests.helpers.places import ROOT

PAGE = ROOT / "docs" / "own-strategy.md"

pytestmark = pytest.mark.slow


def block(title: str) -> str:
    """The code of the page that has this title."""
    found = re.search(rf'```\w+ title="{re.escape(title)}"\n(.*?)```', PAGE.read_text(), re.S)
    assert found, f"{PAGE} has no block {title}"
    return found.group(1)


@pytest.fixture
def folder(tmp_path):
    """A user's folder, with packages that have the names of those at the top of fsl's source tree."""
    for name in ("strategies", "configs", "simulations"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('a package of the user: {name}')")
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    for title in ("clipped.py", "conf/strategy/clipped.yaml"):
        (tmp_path / title).write_text(block(title))
    return tmp_path


ENTRY = ("-m", "fsl.simulations.fsl_simulate", "--config-dir", "conf")
OPTIONS = ("--config-dir", "conf", "experiment=smoke", "strategy=clipped")


def rows(path: Path) -> list[dict]:
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


@pytest.fixture
def here(folder, monkeypatch):
    """The user's folder as this process's own."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.shows  # two minutes; tests/flower/test_grids.py brings classes and a module of the user's to Ray each time
def test_the_wheel_runs_it_on_ray_as_this_process_runs_it_inline(folder, here, installed_wheel):
    options = ("experiment=smoke", "rounds=2", "strategy=clipped", "strategy.clip=0.05", "edges=2")
    ray = ("backend=ray", "nodes=2", "backend.cpus=0.5", "hydra.run.dir=ray")
    installed_wheel.run(*ENTRY, *options, *ray, folder=folder)
    assert command(["--config-dir", "conf", *options, "hydra.run.dir=inline"]) == 0
    assert rows(folder / "inline") == rows(folder / "ray")
    assert (folder / "inline" / "model.safetensors").read_bytes() == (folder / "ray" / "model.safetensors").read_bytes()
    settings = json.loads((folder / "ray" / "summary.json").read_text())["settings"]
    assert settings["strategy"] == "clipped.ClippedPSL"
    assert settings["strategy.clip"] == 0.05


@pytest.mark.usefixtures("here")
def test_it_does_something(folder):
    for clip in (0.001, 1000.0):
        assert command([*OPTIONS, "rounds=1", f"strategy.clip={clip}", f"hydra.run.dir={clip}"]) == 0
    assert rows(folder / "0.001")[-1]["train_loss"] > rows(folder / "1000.0")[-1]["train_loss"]


def test_the_wheel_sweeps_it_as_this_process_runs_it_and_it_is_reported_beside_fsls_own(
    folder, here, installed_wheel, capsys
):
    sweep = ("-m", "experiment=smoke", "strategy=clipped,splitfed_v2", "rounds=1", "hydra.sweep.dir=sweep")
    installed_wheel.run(*ENTRY, *sweep, folder=folder)
    assert len(list(folder.glob("sweep/*/summary.json"))) == 2
    assert command([*OPTIONS, "rounds=1", "hydra.run.dir=here"]) == 0
    assert rows(folder / "here") == rows(folder / "sweep" / "0")
    capsys.readouterr()
    assert report(["sweep", "--out", "report"]) == 0
    printed, page = capsys.readouterr().out, (folder / "report" / "report.html").read_text()
    assert "ClippedPSL" in printed
    assert "SplitFedV2" in printed
    assert "ClippedPSL" in page


@pytest.mark.usefixtures("here")
def test_a_wrong_value_is_one_line(capsys):
    assert command([*OPTIONS, "strategy.clip=-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_it_works_from_python_without_hydra(folder, installed_wheel):
    code = """
import torch, fsl
from clipped import ClippedPSL
from fsl.data import digits
from fsl.models import MLP
torch.manual_seed(0)
run = fsl.simulate(MLP((1, 8, 8), 10), digits(), strategy=ClippedPSL(clip=0.05), devices=4, rounds=1)
print(run.metrics[-1]["accuracy"] > 0, fsl.strategies.__file__)
"""
    learnt, where = installed_wheel.run("-c", code, folder=folder).split()
    assert learnt == "True"
    assert Path(where).is_relative_to(installed_wheel.packages)


def test_it_outlives_a_refused_step(here, monkeypatch):
    """A device whose training diverges is lost, and the others go on, as with fsl's own strategies."""
    import clipped

    torch.manual_seed(0)
    inputs = torch.randn(60, 4)
    inputs[:20] *= 1e12  # device 0's: its loss is finite, and far from all training
    data = TensorDataset(inputs, torch.arange(60) % 3)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    rows = [list(range(20 * k, 20 * k + 20)) for k in range(3)]
    options = {"cut": "0", "devices": 3, "rounds": 1, "partition": rows, "progress": False}
    run = fsl.simulate(model, data, strategy=clipped.ClippedPSL(), **options)
    assert list(run.metrics[0]["lost"]) == ["0"]
