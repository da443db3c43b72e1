"""A run's folder keeps what a run found out, also through kills and full disks."""

import json
from pathlib import Path

import pytest

from fsl import files
from fsl.errors import CheckpointError, ConfigError
from fsl.run.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.refuse_if_used()
    return folder


def rows(*rounds: int) -> list[dict]:
    return [{"round": round, "loss": 1 / round} for round in rounds]


def append(folder: RunFolder, *rounds: int) -> None:
    for row in rows(*rounds):
        folder.append_metrics(row)


def test_rows_come_back_as_they_were_written(folder):
    append(folder, 1, 2, 3)
    assert folder.read_metrics() == rows(1, 2, 3)


def test_a_row_is_on_disk_as_soon_as_it_is_appended(folder):
    append(folder, 1)
    assert folder.metrics_path.read_text() == '{"round": 1, "loss": 1.0}\n'


def test_what_is_no_number_is_null_in_a_row(folder):
    folder.append_metrics({"round": 1, "loss": float("nan"), "accuracy": None})
    assert folder.read_metrics() == [{"round": 1, "loss": None, "accuracy": None}]


def test_a_new_run_has_no_rows(folder):
    assert folder.read_metrics() == []


@pytest.mark.parametrize("use", ["metrics", "checkpoint"])
def test_a_used_folder_is_refused_and_the_line_says_what_to_do(folder, use):
    if use == "metrics":
        append(folder, 1)
    else:
        folder.checkpoint.mkdir()
    with pytest.raises(ConfigError, match=r"resume=.*run\), or choose another folder") as caught:
        folder.refuse_if_used()
    assert "\n" not in str(caught.value)


def test_a_folder_with_other_things_in_it_is_taken(folder):
    (folder.path / ".hydra").mkdir()
    folder.refuse_if_used()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="cannot be made a folder"):
        RunFolder(tmp_path / "run").refuse_if_used()


@pytest.mark.parametrize("cut", ['{"round": 3, "lo', "\0\0\0", "7"], ids=["half a row", "zeros", "a number"])
def test_a_cut_last_line_is_left_out_and_the_next_row_replaces_it(folder, cut):
    append(folder, 1, 2)
    with folder.metrics_path.open("a") as file:
        file.write(cut)
    assert folder.read_metrics() == rows(1, 2)
    append(folder, 3)
    assert [json.loads(line) for line in folder.metrics_path.read_text().splitlines()] == rows(1, 2, 3)


def test_a_last_row_that_lacks_only_its_newline_is_kept(folder):
    append(folder, 1, 2)
    folder.metrics_path.write_text(folder.metrics_path.read_text().rstrip("\n"))
    assert folder.read_metrics() == rows(1, 2)
    append(folder, 3)
    assert folder.read_metrics() == rows(1, 2, 3)


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '{"loss": 1.0}'])
def test_a_damaged_line_between_others_is_named(folder, line):
    append(folder, 1)
    with folder.metrics_path.open("a") as file:
        file.write(f"{line}\n")
    append(folder, 3)
    with pytest.raises(CheckpointError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        folder.read_metrics()


def test_truncation_keeps_the_rows_up_to_a_round(folder):
    append(folder, 1, 2, 3, 4)
    folder.truncate_metrics(2)
    assert folder.read_metrics() == rows(1, 2)
    append(folder, 3)
    assert folder.read_metrics() == rows(1, 2, 3)


def test_truncation_changes_no_bit_of_the_rows_it_keeps(folder):
    append(folder, 1, 3, 7)
    before = folder.metrics_path.read_bytes()
    append(folder, 9)
    folder.truncate_metrics(7)
    assert folder.metrics_path.read_bytes() == before


def test_a_truncation_that_fails_loses_nothing(folder, monkeypatch):
    append(folder, 1, 2, 3)

    def no_space(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        folder.truncate_metrics(1)
    assert folder.read_metrics() == rows(1, 2, 3)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
def test_a_row_that_finds_the_disk_full_is_told_with_its_file(folder, monkeypatch):
    folder.metrics_path.symlink_to("/dev/full")
    monkeypatch.setattr(type(folder), "_is_cut", lambda self: False)
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.jsonl'"):
        append(folder, 1)


def test_the_summary_is_json(folder):
    folder.write_summary({"final": {"accuracy": 0.9, "loss": float("inf")}})
    assert json.loads(folder.summary_path.read_text()) == {"final": {"accuracy": 0.9, "loss": None}}


def test_files_lie_where_the_design_says(tmp_path):
    folder = RunFolder(tmp_path)
    paths = [
        folder.metrics_path,
        folder.summary_path,
        folder.model_path,
        folder.best_path,
        folder.back_path,
        folder.fronts,
        folder.figures,
        folder.checkpoint,
    ]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "metrics.jsonl",
        "summary.json",
        "model.safetensors",
        "best.safetensors",
        "back.safetensors",
        "fronts",
        "figures",
        "checkpoint",
    ]
