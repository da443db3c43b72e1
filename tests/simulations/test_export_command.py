"""`fsl-export`: a run's folder in, programs out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fsl.simulations.fsl_export import command
from fsl.simulations.fsl_simulate import command as simulate
from fsl.simulations.hydra_folder import FederationConfig
from omegaconf import OmegaConf

import fsl
from fsl.run.observers import RunInfo
from tests.helpers.runs import assert_same_bits

pytestmark = pytest.mark.slow
SMOKE = ("experiment=smoke", "devices=2", "rounds=1", "samples_per_device=16", "model.hidden=[6]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run whose devices share one front, and one whose fronts are private."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("one", ()), ("private", ("strategy=splitfed_v3", "codec=int8"))):
        assert simulate([*SMOKE, *more, f"hydra.run.dir={folder / name}"]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_finished_run_is_exported_and_kept_for_others(runs, tmp_path, capsys):
    arguments = [str(runs / "one"), "out=programs", "formats=pt2", "pretrained=saved"]
    assert command(arguments) == 0
    said = capsys.readouterr().out
    assert "front on the device: input (batch, 1, 8, 8) float32 -> smashed (batch, 6) float32, 24 B a sample" in said
    assert "front -> back (pt2) against the whole model: off by 0 at most" in said
    front, back = (torch.export.load(f"programs/{name}.pt2").module() for name in ("front", "back"))
    inputs = torch.randn(3, 1, 8, 8)
    loaded = fsl.load_pretrained("saved")
    with torch.no_grad():
        assert torch.equal(back(*front(inputs))[0], loaded(inputs))
    assert command(arguments) == 2
    assert "replace it with overwrite=true" in capsys.readouterr().err
    assert command([*arguments, "overwrite=true"]) == 0


def test_a_private_front_goes_by_its_device(runs, capsys):
    folder = Path(shutil.copytree(runs / "private", "run"))
    assert command([str(folder), "formats=pt2"]) == 2
    assert "each device has a front of its own; give device=, one of 0, 1" in capsys.readouterr().err
    assert command([str(folder), "formats=pt2", "device=1", "pretrained=saved"]) == 0
    assert "note: smashed data leave this front as they are; in the run the codec Int8" in capsys.readouterr().out
    said = json.loads((folder / "export-1" / "manifest.json").read_text())
    assert (said["device"], said["strategy"]) == (1, "fsl.strategies.splitfed.SplitFedV3")
    program = torch.export.load(folder / "export-1" / "front.pt2").state_dict
    assert_same_bits(dict(program), {name: fsl.load_pretrained("saved").state_dict()[name] for name in program})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("out=x",), "give the folder of one run, as in fsl-export outputs/...; given are 0"),
        (("nowhere",), "nowhere is no run of fsl-simulate: it has no .hydra/config.yaml"),
        (("nowhere", "format=pt2"), "there is no option 'format'; did you mean 'formats'?"),
        (("nowhere", "device=one"), "device=one: it must be a device's number"),
        (("nowhere", "formats=pt2,"), "formats=pt2,: give one or several of pt2, onnx, with commas between them"),
        (("nowhere", "overwrite=yes"), "overwrite=yes: it must be true or false"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, capsys):
    assert command(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fsl-export: {line}")
    assert said.count("\n") == 1


def test_a_cut_that_cannot_be_made_is_one_line(runs, capsys):
    assert command([str(runs / "one"), "cut=nowhere", "out=programs"]) == 2
    assert "cut='nowhere' cannot be made: the model has no module of that name; possible cuts: stage1" in (
        capsys.readouterr().err
    )


def test_a_real_federations_run_is_read_by_its_own_configuration(runs, capsys):
    folder = Path(shutil.copytree(runs / "one", "run"))
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    shutil.rmtree(folder / ".hydra")
    FederationConfig(config).on_start(RunInfo("SplitFedV1", "MLP", "digits", 2, 1, 1, folder))
    assert command([str(folder), "formats=pt2"]) == 0
