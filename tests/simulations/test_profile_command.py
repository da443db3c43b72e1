"""`fsl-profile`: a table a point, the best point at each rate, and files that another machine reads."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from fsl.simulations import fsl_profile
from fsl.simulations.fsl_profile import command
from fsl.simulations.fsl_simulate import command as simulate
from fsl.simulations.profiling.profile_options import OWN, RATES, read_options
from fsl.simulations.profiling.rate_comparison import compare

from fsl.costs import LinkProfile
from fsl.errors import ConfigError
from fsl.files import load_tensors
from fsl.inference.planning import SplitChoice
from fsl.inference.profiles import Encoding, read_profile
from tests.helpers.small_profiles import small_costs

SMALL = ["model=mlp", "model.hidden=[16]", "data=digits", "repetitions=2", "warm_up=0"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small profile's folder."""
    out = tmp_path_factory.mktemp("profile") / "out"
    assert command([*SMALL, "device=pi4", "link=lte", "edge_speed=10", "rates=0,1,1000", f"out={out}"]) == 0
    return out


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_profile_is_written_for_people_and_machines(done):
    assert {path.name for path in done.iterdir()} == {
        "profile.json", "profile.csv", "best_points.csv", "profile.png",
    }  # fmt: skip
    profile = read_profile(done / "profile.json")
    assert (profile.names, profile.batch, profile.power_active_watts) == (
        ("input", "stage1.0", "stage1", "output"), 1, 6.4,
    )  # fmt: skip
    rows = rows_of(done / "profile.csv")
    assert [row["point"] for row in rows] == list(profile.names)
    assert [int(row["crossing_bytes"]) for row in rows] == [256, 256, 64, 40]
    assert [float(row["head_macs"]) for row in rows] == [0, 0, 64 * 16, 64 * 16 + 160]
    assert float(rows[2]["head_joules"]) == pytest.approx(6.4 * float(rows[2]["head_seconds_mean"]))
    assert (done / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_point_stands_beside_both_extremes_and_images(done):
    rows = rows_of(done / "best_points.csv")
    assert {row["role"] for row in rows} == {"best", "local", "remote", "uint8", "jpeg:75", "webp:75"}
    for mbit in ("0.0", "1.0", "1000.0"):
        of_rate = {row["role"]: row for row in rows if row["mbit"] == mbit}
        times = [
            float(row["seconds"] or "inf") for role, row in of_rate.items() if role in ("local", "remote", "uint8")
        ]
        assert float(of_rate["best"]["seconds"]) <= min(times)
        assert [of_rate[role]["point"] for role in ("local", "remote", "uint8")] == ["output", "input", "input"]
    assert {row["role"]: row["input_format"] for row in rows if row["role"] not in ("best", "local")} == {
        "remote": "", "uint8": "uint8", "jpeg:75": "jpeg:75", "webp:75": "webp:75",
    }  # fmt: skip
    without = {row["role"]: row for row in rows if row["mbit"] == "0.0"}
    assert (without["best"]["point"], without["remote"]["seconds"]) == ("output", "")
    assert float(rows[0]["rtt"]) in (0.0, pytest.approx(0.055))


def test_an_image_as_it_is_may_be_best_and_one_that_changes_answers_may_not():
    formats = {"uint8": Encoding(factor=0.25), "jpeg:75": Encoding(factor=0.01)}
    (row,) = compare(small_costs(input_formats=formats), [50.0], LinkProfile("mine", 1, 1))
    assert row.best.choice == SplitChoice("input", input_format="uint8")
    assert row.images["jpeg:75"].seconds < row.best.seconds < row.remote.seconds


def test_what_is_printed_tells_machine_points_bottlenecks_and_rates(capsys):
    assert command([*SMALL, "points=stage1", "rates=5", "images=", "out=out", "batch=2"]) == 0
    said = capsys.readouterr().out
    assert "1 thread, batch 2, 2 repetitions after 0; the whole model takes" in said
    assert "check at stage1: head and tail, each run for itself, take" in said
    assert "natural bottlenecks (less crosses than the input's 64 elements): 1 of 1 cuts: stage1" in said
    assert "device and edge: this machine, so that sending hardly pays; give edge_speed or edge_profile" in said
    assert "jpeg" not in said
    assert said.rstrip().endswith("profile, CSV and figure: out")


def test_assumed_speeds_are_told_and_change_predictions_alone(capsys):
    speeds = ["device_speed=0.01", "edge_speed=100"]
    assert command([*SMALL, *speeds, "points=stage1", "rates=5", "images=", "out=out"]) == 0
    said = capsys.readouterr().out
    told = "device: assumed to compute 0.01 times as fast as this machine; edge: assumed to compute 100 times as fast"
    assert told in said
    profile = read_profile(Path("out/profile.json"))
    rows = {row["role"]: row for row in rows_of(Path("out/best_points.csv"))}
    assert float(rows["local"]["head"]) == pytest.approx(100 * profile.whole.p50)
    assert float(rows["remote"]["tail"]) == pytest.approx(profile.whole.p50 / 100)


def test_another_machine_reads_the_devices_profile(done, capsys):
    device = shutil.copy(done / "profile.json", "device.json")
    assert command([*SMALL, f"profile={device}", "rates=5", "images=", "out=edge"]) == 0
    edge = read_profile(Path("edge/profile.json"))
    assert edge.digest == read_profile(Path(device)).digest
    assert edge.power_active_watts is None
    assert command([f"profile={device}", "edge_profile=edge/profile.json", "rates=5", "out=both"]) == 0
    assert not Path("both/profile.json").exists()
    assert command([*SMALL, "seed=1", f"profile={device}", "out=other"]) == 2
    assert "device.json is the profile of another model (MLP), or of other weights" in capsys.readouterr().err


def test_points_and_batch_are_those_of_the_other_sides_profile():
    assert command([*SMALL, "points=stage1", "batch=3", "images=", "rates=5", "out=device"]) == 0
    assert command([*SMALL, "profile=device/profile.json", "images=", "rates=5", "out=edge"]) == 0
    edge = read_profile(Path("edge/profile.json"))
    assert (edge.names, edge.batch) == (("input", "stage1", "output"), 3)


@pytest.mark.slow
def test_the_model_of_a_run_is_profiled_with_its_weights(capsys):
    smoke = ["experiment=smoke", "devices=2", "rounds=1", "samples_per_device=16", "model.hidden=[6]"]
    assert simulate([*smoke, "hydra.run.dir=run"]) == 0
    assert command(["run=run", "repetitions=1", "warm_up=0", "images=", "out=of_run", "device=pi4"]) == 0
    profile = read_profile(Path("of_run/profile.json"))
    weights = load_tensors(Path("run/model.safetensors"))
    assert profile.point("output").head.parameters == sum(map(torch.numel, weights.values()))
    assert command([*smoke, "repetitions=1", "warm_up=0", "images=", "out=untrained"]) == 0
    assert read_profile(Path("untrained/profile.json")).digest != profile.digest
    assert simulate([*smoke, "strategy=splitfed_v3", "hydra.run.dir=private"]) == 0
    assert command(["run=private", "images=", "out=private-out"]) == 2
    assert "each device has a front of its own; give front=, one of 0, 1" in capsys.readouterr().err
    assert command(["run=private", "front=1", "repetitions=1", "images=", "out=private-out"]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["model"], "model: give options as key=value"),
        (["model=resnet9"], "model=resnet9: there is no such model"),
        (["repetitions=0"], "repetitions=0: it must be a whole number of at least 1"),
        (["batch=x"], "batch=x: it must be a whole number of at least 1"),
        (["edge_speed=0"], "edge_speed=0: it must be a number of at least"),
        (["rates=1,fast"], "rates=1,fast: 'fast' is no rate in Mbit/s"),
        (["rates=1,-1"], "'-1' is no rate"),
        (["rates=nan"], "'nan' is no rate"),
        (["rates="], "rates=: give at least one"),
        (["points=stage7"], "cut='stage7' cannot be made"),
        (["points=stage1,"], "points=stage1,: give one or several"),
        (["images=png:5"], "images=png:5: give a format of jpeg, webp"),
        (["images=jpeg:0"], "images=jpeg:0"),
        (["profile=nowhere.json"], "nowhere.json cannot be read"),
        (["profile=a.json", "points=stage1"], "points=stage1: they are those of profile=a.json"),
        (["edge_profile=a.json", "edge_speed=2"], "edge_speed=2: edge_profile=a.json tells another machine's"),
        (["profile=a.json", "device_speed=2"], "device_speed=2: profile=a.json tells another machine's"),
        (["device=pi4", "device_speed=0.1"], "device_speed=0.1: device=... says which device this machine is"),
        (["run=nowhere"], "nowhere is no run of fsl-simulate"),
        (["front=1"], "front=1: whose front is a question for a run"),
        (["run="], "run=: give a path"),
        (["codec=int8"], "codec=int8: what crosses is measured without a codec"),
        (["model=vertical_mlp", "model.hidden=[8]", "data=breast_cancer", "strategy=vertical"], "several parties"),
        (["repetition=5"], "there is no key 'repetition'"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, capsys):
    own = [] if arguments[0].startswith("run=") else SMALL
    own = [text for text in own if text.partition("=")[0] not in {given.partition("=")[0] for given in arguments}]
    assert command([*own, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fsl-profile: ")
    assert line in said
    assert said.count("\n") == 1


def test_a_runs_own_model_takes_no_other_options():
    with pytest.raises(ConfigError, match="model=mlp: run=x has a model and data of its own"):
        read_options(["run=x", "model=mlp"])
    assert read_options(["run=x", "device=pi4", "link.up_mbit=3"]).overrides == ("device=pi4", "link.up_mbit=3")


@pytest.mark.parametrize(
    "idle", ["model=mlp", "run=x", "front=1", "batch=2", "repetitions=3", "warm_up=1", "threads=2", "checks=0"]
)
def test_options_of_measuring_are_refused_where_nothing_is_measured(idle):
    with pytest.raises(ConfigError, match=f"{idle}: with profile= and edge_profile= nothing is measured here"):
        read_options(["profile=a.json", "edge_profile=b.json", "device=pi4", "link.up_mbit=3", idle])


def test_what_is_not_said_is_as_usual():
    options = read_options(["model=mlp"])
    assert (options.repetitions, options.threads, options.rates, options.points) == (50, 1, RATES, None)
    assert (options.images, options.batch, options.names_device) == (None, None, False)
    assert read_options(["points=[a, b]", "rates=[5,1]", "+device=pi4"]).points == ("a", "b")
    assert read_options(["rates=[5,1,5]"]).rates == (1.0, 5.0)


@pytest.mark.parametrize(
    ("raised", "code", "line"), [(KeyboardInterrupt(), 130, "interrupted"), (OSError("x"), 1, "x")]
)
def test_ctrl_c_and_failures_end_with_their_codes(raised, code, line, monkeypatch, capsys):
    def fails(*_, **__):
        raise raised

    monkeypatch.setattr(fsl_profile, "measure", fails)
    assert command([*SMALL, "out=out"]) == code
    assert capsys.readouterr().err.startswith(f"fsl-profile: {line}")
    assert not Path("out").exists()


def test_a_model_that_fails_is_one_line(monkeypatch, capsys):
    forward = "    def forward(self, x):\n        raise RuntimeError('no')\n"
    Path("broken.py").write_text(f"from torch import nn\n\n\nclass Broken(nn.Module):\n{forward}")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert command(["model=custom", "model._target_=broken.Broken", "data=digits", "out=out"]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("fsl-profile: ")
    assert said.count("\n") == 1


def test_help_tells_every_option_of_its_own(capsys):
    assert command(["--help"]) == 0
    said = capsys.readouterr().out
    for name in OWN:
        assert f"{name}=" in said, name
