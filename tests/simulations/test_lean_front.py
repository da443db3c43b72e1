"""`lean_front=` on the command line: in runs, and in the commands that read their folders, also with int8=true."""

import json
import sys
from pathlib import Path

import pytest
import torch
from fsl.simulations.fsl_compare_inference import command as compare
from fsl.simulations.fsl_export import command as export
from fsl.simulations.fsl_profile import command as profile
from fsl.simulations.fsl_simulate import command
from safetensors.torch import load_file

from fsl.inference.profiles import read_profile

pytestmark = pytest.mark.slow

RUN = ["model=vgg5", "model.norm=batch", "devices=2", "rounds=1", "samples_per_device=32", "data.test_share=0.1"]
needs_int8 = pytest.mark.skipif("onednn" not in torch.backends.quantized.supported_engines, reason="no int8 kernels")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])


def weights_of(*options, folder="run"):
    assert command([*RUN, *options, f"hydra.run.dir={folder}"]) == 0
    return load_file(f"{folder}/model.safetensors")


def test_a_pruned_front_is_trained_resumed_and_exported():
    weights = weights_of("lean_front=pruned", "lean_front.share=0.25")
    assert len(weights["conv1.0.weight"]) == 24
    assert weights["conv3.0.weight"].shape[1] == 48
    assert command([*RUN, "lean_front=pruned", "lean_front.share=0.25", "rounds=2", "resume=run"]) == 0
    assert export(["run", "formats=pt2"]) == 0
    front = torch.export.load("run/export/front.pt2").module()
    (smashed,) = front(torch.zeros(2, 1, 8, 8))
    assert smashed.shape == (2, 48, 2, 2)


def test_ghost_modules_and_masks_reach_up_to_the_cut():
    weights = weights_of("lean_front=ghost", "model.cut=pool1")
    assert "conv1.0.cheap.0.weight" in weights
    assert "conv2.0.weight" in weights
    weights = weights_of("lean_front=magnitude", "lean_front.until=conv3", folder="other")
    assert int(weights["conv3.0.mask"].sum()) == weights["conv3.0.weight"].numel() // 2


@needs_int8
@pytest.mark.parametrize("front", ["int8", "none"])
def test_a_runs_front_is_profiled_and_compared_in_int8(front, capsys):
    weights_of(f"lean_front={front}")
    assert profile(["run=run", "int8=true", "repetitions=1", "warm_up=0", "points=pool2", "images=", "out=p"]) == 0
    (point,) = [one for one in read_profile(Path("p/profile.json")).points if one.name == "pool2"]
    assert point.crossing_bytes == 64 * 2 * 2  # a byte a value
    assert point.head.macs == 9 * (1 * 32 * 64 + 32 * 64 * 16)
    given = ["run=run", "int8=true", "repetitions=1", "requests=5", "rates=10", "images=none", "points=pool2", "out=c"]
    assert compare(given) == 0
    assert "VGG5 of run" in capsys.readouterr().out


@needs_int8
def test_a_front_that_learnt_in_int8_is_exported_as_it_was_trained():
    """Programs round as the model does, in floats."""
    weights = weights_of("lean_front=int8")
    assert int(weights["conv1.0.inputs.batches"]) == 2
    assert export(["run", "formats=pt2"]) == 0
    assert json.loads(Path("run/export/manifest.json").read_text())["segments"][0]["name"] == "front"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["lean_front=pruned", "lean_front.share=1"], "lean_front.share=1.0: it must be in [0, 1)"),
        (["lean_front=magnitude", "lean_front.share=-0.5"], "lean_front.share=-0.5: it must be in [0, 1)"),
        (
            ["lean_front=pruned", "lean_front.kind=small"],
            "lean_front.kind='small': allowed are ghost, int8, pruned, m",
        ),
        (["lean_front=pruned", "+lean_front.bits=8"], "there is no option of lean_front 'bits'"),
        (["lean_front=ghost", "lean_front.ratio=1"], "ratio=1: it is 2 or more"),
        (["lean_front=int8", "model.norm=group"], "conv1.1 is a GroupNorm"),
        (["lean_front=pruned", "model=resnet8", "model.cut=stem"], "a skip connection ties it to block1.body.3"),
        (["lean_front=small"], "lean_front=small: there is no such lean_front; available are: ghost, int8, magnitude"),
    ],
)
def test_what_cannot_be_is_a_line(options, line, capsys):
    assert command([*RUN, *options]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_int8_needs_a_run_and_a_width_that_there_is(capsys):
    assert profile(["model=vgg5", "int8=true"]) == 2
    assert "int8=true: ranges come of training; give run=FOLDER too" in capsys.readouterr().err
    assert profile(["run=run", "int8=9"]) == 2
    assert "int8=9: it is true, false, or the bits of activations, 7 or 8" in capsys.readouterr().err
