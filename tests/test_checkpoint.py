"""Checkpoints that are written while the next round is computed."""

import pytest
import torch

from fsl import checkpoint as module
from fsl.checkpoint import Checkpoint, CheckpointWriter, load_checkpoint


def of_round(round, tensor):
    return Checkpoint(round, {"front.w": tensor}, {"versions": {}}, {})


def test_it_holds_the_values_of_when_it_was_asked_for(tmp_path):
    writer, tensor, done = CheckpointWriter(tmp_path / "checkpoint"), torch.ones(3), []
    writer.write(of_round(1, tensor), lambda: done.append(1))
    tensor.zero_()
    assert done == []  # said by the caller's own thread, when it asks
    writer.close()
    assert done == [1]
    assert torch.equal(load_checkpoint(tmp_path / "checkpoint").tensors["front.w"], torch.ones(3))


def test_only_the_newest_stays(tmp_path):
    writer = CheckpointWriter(tmp_path)
    for round in (1, 2, 3):
        writer.write(of_round(round, torch.ones(3)), lambda: None)
    writer.close()
    assert [path.name for path in tmp_path.glob("model.*")] == ["model.3.safetensors"]


@pytest.mark.parametrize("ask", ["write", "wait", "close"])
def test_what_went_wrong_is_raised_and_nothing_is_called_done(ask, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_bytes", full)
    writer, done = CheckpointWriter(tmp_path), []
    writer.write(of_round(1, torch.ones(3)), lambda: done.append(1))
    arguments = (of_round(2, torch.ones(3)), lambda: done.append(2)) if ask == "write" else ()
    with pytest.raises(OSError, match="No space left"):
        getattr(writer, ask)(*arguments)
    writer.close()
    assert done == []
