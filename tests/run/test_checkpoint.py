"""Checkpoints that are written while the next round is computed."""

import math
from dataclasses import replace

import pytest
import torch

from fsl.errors import CheckpointError
from fsl.files import save_tensors
from fsl.run import checkpoint as module
from fsl.run.checkpoint import Checkpoint, CheckpointWriter, load_checkpoint


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


def test_the_newest_and_the_one_before_stay(tmp_path):
    writer = CheckpointWriter(tmp_path)
    for round in (1, 2, 3):
        writer.write(of_round(round, torch.ones(3)), lambda: None)
    writer.close()
    assert {path.name for path in tmp_path.glob("model.*")} == {"model.2.safetensors", "model.3.safetensors"}


def two(folder):
    writer = CheckpointWriter(folder)
    for round in (1, 2):
        writer.write(of_round(round, torch.full((3,), float(round))), lambda: None)
    writer.close()


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:30]),
    "gone": lambda path: path.unlink(),
    "not finite": lambda path: save_tensors(path, {"front.w": torch.tensor([1.0, math.nan, 1.0])}),
}


@pytest.mark.parametrize(
    ("damage", "name"), [("cut", "state.json"), ("gone", "state.json"), *((d, "model.2.safetensors") for d in DAMAGE)]
)
def test_where_the_newest_is_no_use_the_one_before_is_taken_and_said(damage, name, tmp_path, caplog):
    two(tmp_path)
    DAMAGE[damage](tmp_path / name)
    assert load_checkpoint(tmp_path).round == 1
    assert "it goes on from the checkpoint of round 1" in caplog.text
    assert "\n" not in caplog.messages[0]
    writer = CheckpointWriter(tmp_path)
    writer.write(of_round(2, torch.zeros(3)), lambda: None)
    writer.close()
    assert load_checkpoint(tmp_path).round == 2
    DAMAGE["cut"](tmp_path / "model.2.safetensors")
    assert load_checkpoint(tmp_path).round == 1


def test_where_neither_is_of_use_both_are_named_in_one_line(tmp_path):
    two(tmp_path)
    for round in (1, 2):
        DAMAGE["not finite"](tmp_path / f"model.{round}.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.2.*nor can the one before it .*model\.1") as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_a_strategy_remembers_may_be_infinite(tmp_path):
    writer = CheckpointWriter(tmp_path)
    tensors = {"front.w": torch.ones(1), "strategy/best": torch.tensor(math.inf)}
    found = replace(of_round(1, torch.ones(3)), tensors=tensors)
    writer.write(found, lambda: None)
    writer.close()
    assert load_checkpoint(tmp_path).tensors["strategy/best"].isinf()


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
