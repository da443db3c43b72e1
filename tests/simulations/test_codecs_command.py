"""`fsl-codecs`: codecs side by side, the input itself as the baseline, and what each codec costs."""

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest
from fsl.simulations.codec_bench import bench_runs
from fsl.simulations.codec_bench.bench_tables import best_lines
from fsl.simulations.codec_bench.cases import USUAL, codec_case, codec_cases, image_cases
from fsl.simulations.codec_bench.cut_costs import cut_costs
from fsl.simulations.codec_bench.results import Row, best_at, front_of, image_rows
from fsl.simulations.fsl_codecs import command
from fsl.simulations.reports.measures import Measure
from fsl.simulations.sweeps.search_trial import TrialResult, composed
from PIL import Image

from fsl.data import digits
from fsl.errors import ConfigError
from fsl.run import plotting
from fsl.run.figure_bytes import to_bytes
from fsl.run.run_folder import RunFolder

SMOKE = ["experiment=smoke", "rounds=1", "devices=2", "samples_per_device=16"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of images of two classes, 8 pixels a side."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        (folder / split / name).mkdir(parents=True)
        for number in range(16 if split == "train" else 4):
            values = generator.integers(0, 100, (8, 8, 3)) + (100 if name == "b" else 0)
            Image.fromarray(values.astype(np.uint8)).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory, pictures):
    """A small bench's arguments and folder, after it has run."""
    out = tmp_path_factory.mktemp("bench") / "out"
    arguments = [*SMOKE, "data=images", f"data.path={pictures}", "batch_size=8"]
    arguments += ["--codec", "int8", "--codec", "[c3 ratio=4,int8]", "--images", "jpeg:50", "--seeds", "0", "1"]
    arguments += ["--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "to_bytes", to_bytes)
        assert command(arguments) == 0
    return arguments, out


def rows_of(out):
    with (out / "codecs.csv").open(newline="") as file:
        return {row["codec"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", ("codec=int8",)),
        ("c3  ratio=8", ("codec=c3", "codec.up.ratio=8")),
        ("topk k=0.1 codec.down=int8", ("codec=topk", "codec.up.k=0.1", "codec.down=int8")),
        ("[c3,int8]", ("codec=[c3,int8]",)),
        (
            "[c3 ratio=8,int8]",
            (
                "codec=identity",
                "codec.up=[{_target_: fsl.codecs.C3, ratio: 8},{_target_: fsl.codecs.Int8}]",
                "codec.down=[{_target_: fsl.codecs.Int8}]",
            ),
        ),
    ],
)
def test_a_codec_is_read_with_its_options(text, expected):
    assert codec_case(text).overrides == expected


def test_the_usual_codecs_can_be_composed_and_need_no_extra():
    for case in codec_cases(USUAL):
        assert not {"zstd", "rans", "entropic"} & set(re.split(r"\W", case.title))
        if len(case.overrides) > 1:
            composed(case.overrides)


def test_identity_comes_first_and_nothing_twice():
    assert [case.title for case in codec_cases(["int8", "c3"])] == ["identity", "int8", "c3"]
    assert [case.title for case in codec_cases(["int8", "identity"])] == ["identity", "int8"]
    with pytest.raises(ConfigError, match="asked for twice"):
        codec_cases(["int8", "int8"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--codec", "int9"], "there is no codec 'int9'; did you mean"),
        (["--codec", "c3 8"], "8 is no option; give option=value"),
        (["--codec", "c3 ratoi=8"], "there is no key 'codec.up.ratoi'"),
        (["--codec", "[c3,int8"], "give codecs with commas between them"),
        (["--codec", "[c3,int8] ratio=8"], "put it behind the codec that it belongs to"),
        (["--codec", "c3 ratio=512"], "ratio=512: so many rows travel as one, and a batch has"),
        (["--codec", "topk k=0"], "codec.up.k=0"),
        (["--images", "png:50"], "--images png:50: give a format of jpeg, webp"),
        (["codec=int8"], "codec=int8: give codecs as --codec"),
        (["seed=3"], "seed=3: give --seeds instead"),
        (["--seeds", "1", "1"], "--seeds 1 1: give different numbers"),
        (["--jobs", "0"], "--jobs 0: it must be at least 1"),
        (["--metric", "colour"], "--metric colour: whether more of it is better is not known"),
        (["cuts={pi4: relu1}"], "codecs are compared at one cut"),
    ],
)
def test_bad_input_gets_a_line_before_anything_runs(arguments, reason, capsys):
    given = [] if "--codec" in arguments else ["--codec", "int8"]
    assert command([*SMOKE, *given, *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert reason in lines[0]
    assert not list(Path().rglob("metrics.jsonl"))


def test_runs_that_fail_are_told_and_leave_no_table(capsys, monkeypatch):
    def refused(task, report):
        return TrialResult("failed", reason="it broke")

    monkeypatch.setattr(bench_runs, "run_trial", refused)
    assert command([*SMOKE, "--codec", "int8", "--out", "out"]) == 1
    told = capsys.readouterr()
    assert "int8, seed 0 failed: it broke" in told.out + told.err
    assert (
        told.err.splitlines()[-1]
        == "fsl-codecs: out: no run of identity is done, so that there is nothing to compare with"
    )
    Path("file").touch()
    assert command([*SMOKE, "--codec", "int8", "--out", "file/out"]) == 1
    assert "file/out" in capsys.readouterr().err.splitlines()[-1]


def test_bytes_are_those_that_the_runs_sent_for_a_sample(bench):
    _, out = bench
    for title, row in rows_of(out).items():
        folders = sorted((out / "runs" / re.sub(r"[^A-Za-z0-9.]+", "-", title).strip("-")).glob("*"))
        if row["kind"] == "image":
            continue
        assert len(folders) == 2
        told = [line for folder in folders for line in RunFolder(folder).read_metrics()]
        seen = sum(line["examples"] for line in told)
        assert float(row["up_bytes"]) == pytest.approx(sum(line["up_bytes"] for line in told) / seen)
        assert float(row["down_bytes"]) == pytest.approx(sum(line["down_bytes"] for line in told) / seen)
        assert float(row["accuracy_mean"]) == pytest.approx(
            np.mean([RunFolder(folder).read_metrics()[-1]["accuracy"] for folder in folders])
        )
    rows = rows_of(out)
    assert float(rows["int8"]["times_fewer"]) == pytest.approx(4, rel=0.15)  # headers
    assert float(rows["[c3 ratio=4,int8]"]["times_fewer"]) > 2 * float(rows["int8"]["times_fewer"])


def test_the_input_itself_stands_beside_codecs(bench, pictures):
    _, out = bench
    rows = rows_of(out)
    sizes = [path.stat().st_size for path in pictures.glob("train/*/*.png")]
    assert float(rows["the stored input"]["up_bytes"]) == pytest.approx(np.mean(sizes) + 8)
    assert rows["the stored input"]["accuracy_mean"] == rows["identity"]["accuracy_mean"]
    assert float(rows["jpeg 50, tables once"]["up_bytes"]) < float(rows["jpeg 50"]["up_bytes"])
    assert {row["down_bytes"] for row in rows.values() if row["kind"] == "image"} == {"0.0"}


def test_table_and_figure_are_there(bench):
    _, out = bench
    text = (out / "codecs.md").read_text(encoding="utf-8")
    assert "| int8 |" in text
    assert "times fewer bytes both ways" in text
    with Image.open(out / "codecs.png") as figure:
        assert figure.width > 1000


def test_the_same_command_runs_nothing_again_and_a_further_codec_alone(bench, capsys):
    arguments, out = bench
    before = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    more = [*arguments, "--codec", "bfloat16"]
    assert command(more) == 0
    after = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    assert {path: after[path] for path in before} == before
    assert {path.parent.parent.name for path in after.keys() - before.keys()} == {"bfloat16"}
    capsys.readouterr()
    assert command([*arguments, "batch_size=4"]) == 2
    assert "has a run with another batch_size (8, now 4)" in capsys.readouterr().err


def test_costs_of_a_codec_are_counted():
    data = digits()
    plain = cut_costs(composed(SMOKE), data)
    assert (plain.device_flops, plain.edge_flops, plain.parameters, plain.kept) == (0, 0, 0, 0)
    assert plain.value_bytes == 4 * plain.values
    c3 = cut_costs(composed([*SMOKE, *codec_case("c3 ratio=2").overrides]), data)
    n = plain.values
    transform = 2.5 * n * math.log2(n)
    # A transform of each row, one back for a pair, and the gradient through both; torch goes back through a real
    # transform by a complex one, which counts twice.
    assert c3.device_flops == pytest.approx((1 + 1 / 2 + 1 / 2 + 2) * transform)
    assert c3.parameters == 0
    assert c3.kept > n
    assert c3.device_seconds > 0
    learned = cut_costs(composed([*SMOKE, "codec=bottleneck", "codec.up.channels=2"]), data)
    assert learned.parameters > 0
    assert learned.device_flops > 0


def row(title, both, mean, kind="codec"):
    return Row(title, kind, {0: mean}, {0: 0.0}, both, 0.0)


def test_the_front_has_what_no_other_beats():
    rows = [row("identity", 100, 0.9), row("a", 50, 0.9), row("b", 25, 0.7), row("c", 20, 0.8), row("d", 10, 0.1)]
    assert [each.title for each in front_of(rows)] == ["d", "c", "a"]
    assert [each.title for each in front_of(rows, higher=False)] == ["d"]
    assert best_at(rows, rows[0], 4).title == "c"
    assert best_at(rows, rows[0], 2).title == "a"
    assert best_at(rows, rows[0], 96) is None


def test_the_verdict_counts_codecs_that_the_input_beats():
    rows = [row("identity", 100, 0.9), row("a", 30, 0.8), row("b", 10, 0.2), row("the stored input", 20, 0.9, "image")]
    lines = best_lines(rows, Measure("accuracy"))
    assert lines[0].endswith("the input itself is better: the stored input, accuracy 90.00 %")
    assert lines[-1].startswith("2 of 3 rows")


def test_images_have_a_row_with_tables_and_one_without():
    whole, bare = image_rows(row("jpeg 50", 0, 0.5, "image"), 300.0, 80.0, 8)
    assert (whole.up, bare.up, bare.title) == (308.0, 88.0, "jpeg 50, tables once")
    assert len(image_rows(row("webp 50", 0, 0.5, "image"), 300.0, None, 8)) == 1
    (case,) = image_cases(["webp:50"], "fsl.data.images")
    assert "+data.quality=50" in case.overrides
