"""A file is written whole or not at all, and what cannot be read is one clear line."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fsl import files
from fsl.errors import CheckpointError
from fsl.files import load_metadata, load_tensors, save_tensors, to_json, write_bytes, write_json, write_text
from fsl.round.node_store import Store


def out_of_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(("accident", "raised"), [(out_of_space, OSError), (interrupted, KeyboardInterrupt)])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, accident, raised):
    path = tmp_path / "state.json"
    write_text(path, "old")
    monkeypatch.setattr(files.os, step, accident)
    with pytest.raises(raised):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_cannot_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.zeros(2)})
    monkeypatch.setattr(files.os, "replace", out_of_space)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(path, {"weight": torch.ones(2)})
    assert torch.equal(load_tensors(path)["weight"], torch.zeros(2))


def test_a_full_disk_is_told_with_the_file_that_it_is_too_full_for(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", out_of_space)
    for write in (lambda path: write_text(path, "new"), lambda path: files.sync([path])):
        with pytest.raises(OSError, match=r"No space left on device: '.*/state\.json'") as caught:
            write(tmp_path / "state.json")
        assert caught.value.errno == errno.ENOSPC
        (tmp_path / "state.json").touch()


def test_the_old_content_stays_until_the_new_is_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "model.bin"
    write_bytes(path, b"old")
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda handle: (seen.append(path.read_bytes()), fsync(handle)))
    write_bytes(path, b"new")
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


def test_results_may_be_read_by_those_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        write_bytes(tmp_path / "model.bin", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "model.bin").stat().st_mode & 0o777 == 0o644


def test_a_file_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    write_text(tmp_path / ("x" * 255), "text")
    assert (tmp_path / ("x" * 255)).read_text() == "text"


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"loss": float("nan"), "inner": [float("inf"), (-float("inf"), 1.5)], "device": {3: "a"}})
    assert json.loads(path.read_text()) == {"loss": None, "inner": [None, [None, 1.5]], "device": {"3": "a"}}


def test_numpy_and_torch_values_are_numbers_in_json():
    row = {"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor([1.0, float("nan")]), "d": np.float64("nan")}
    assert json.loads(to_json(row)) == {"a": 0.5, "b": 3, "c": [1.0, None], "d": None}


def test_tensors_come_back_to_the_bit(tmp_path):
    tensors = {
        "weight": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).T,
        "half": torch.randn(5).bfloat16(),
        "counter": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save_tensors(tmp_path / "model.safetensors", tensors)
    loaded = load_tensors(tmp_path / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_tensors_that_share_memory_are_written_each_by_itself(tmp_path):
    base = torch.arange(6.0)
    save_tensors(tmp_path / "tied.safetensors", {"a": base, "b": base, "tail": base[2:], "grid": base.view(2, 3)})
    loaded = load_tensors(tmp_path / "tied.safetensors")
    assert torch.equal(loaded["b"], base)
    assert torch.equal(loaded["tail"], base[2:])
    assert torch.equal(loaded["grid"], base.view(2, 3))
    loaded["a"].zero_()
    assert torch.equal(loaded["b"], base)


def test_metadata_comes_back(tmp_path):
    save_tensors(tmp_path / "best.safetensors", {"weight": torch.zeros(1)}, {"round": "3"})
    save_tensors(tmp_path / "plain.safetensors", {})
    assert load_metadata(tmp_path / "best.safetensors") == {"round": "3"}
    assert load_metadata(tmp_path / "plain.safetensors") == {}


WHOLE = save({"weight": torch.arange(6.0)}, {"round": "3"})
UNKNOWN = b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'


@pytest.mark.parametrize("read", [load_tensors, load_metadata])
@pytest.mark.parametrize("data", [b"", WHOLE[:5], WHOLE[:40], b"\xff" * 200], ids=["empty", "5", "40", "noise"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, read, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="no readable safetensors file") as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_whose_tensors_are_cut_off_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(WHOLE[:-4])
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        load_tensors(tmp_path / "model.safetensors")


def test_a_type_that_torch_does_not_know_is_named(tmp_path):
    path = tmp_path / "four_bits.safetensors"
    path.write_bytes(len(UNKNOWN).to_bytes(8, "little") + UNKNOWN + b"\0")
    with pytest.raises(CheckpointError, match="'F4', which torch cannot read"):
        load_tensors(path)


@pytest.mark.parametrize("read", [load_tensors, load_metadata])
def test_a_missing_file_and_a_folder_are_refused(tmp_path, read):
    with pytest.raises(CheckpointError, match="there is no file"):
        read(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        read(tmp_path)


def test_a_round_waits_once_for_the_disk(tmp_path, monkeypatch):
    store, waited = Store(tmp_path), []
    monkeypatch.setattr(files, "_sync", lambda path: waited.append(path.name))
    for device in range(3):
        store.save(f"fronts/{device}", 1, {"w": torch.zeros(2)}, (0,))
    assert waited == []
    store.sync()
    store.sync()
    assert len(waited) == 3


def test_waiting_for_the_disk_tells_of_trouble(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.sync([tmp_path / "gone"])
