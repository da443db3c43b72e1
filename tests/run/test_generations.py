"""Whose state of which round counts: remembered, checkpointed and read back in the time of what changes."""

import json
from dataclasses import replace

import pytest
import torch

import fsl
from fsl.errors import CheckpointError
from fsl.run.checkpoint import Checkpoint, CheckpointWriter, load_checkpoint
from fsl.run.generation_journal import GenerationJournal, read_journal, write_entry
from fsl.run.generations import Generations
from tests.helpers.small import small_model, small_task


def test_generations_then_stay_as_they_were():
    found = Generations({"device-1": 1})
    found.note("device-2", 2)
    first = found.now()
    found.note("device-1", 5)
    found.note("device-1", 3)
    found.forget("device-2")
    second = found.now()
    found.note("device-4", 4)
    assert dict(first) == {"device-1": 1, "device-2": 2}
    assert dict(second) == {"device-1": 3}
    assert dict(found.now()) == dict(found.items()) == {"device-1": 3, "device-4": 4}
    assert (len(first), len(second), len(found)) == (2, 1, 2)


def test_what_changed_since_a_moment_is_that_alone():
    found = Generations({f"device-{n}": 1 for n in range(100)})
    first = found.now()
    found.note("device-3", 2)
    found.forget("device-4")
    second = found.now()
    found.note("device-5", 3)
    assert second.since(first) == {"device-3": 2, "device-4": 0}
    assert found.now().since(second) == {"device-5": 3}
    assert found.now().since(first) == {"device-3": 2, "device-4": 0, "device-5": 3}
    assert first.since(None) == dict(first)
    assert first.since(Generations({"device-3": 2}).now()) == dict(first)


def test_a_checkpoint_that_is_complete_says_what_is_saved():
    found = Generations({"device-1": 1})
    found.note("device-1", 2)
    assert (found.newest("device-1"), found.saved("device-1")) == (2, 1)
    then = found.now()
    found.note("device-1", 3)
    assert found.saved("device-1") == 1
    found.checkpointed(then)
    assert (found.newest("device-1"), found.saved("device-1"), found.saved("device-9")) == (3, 2, 0)
    found.checkpointed({"device-1": 7})
    assert found.saved("device-1") == 7


def of_round(round, found, tensor=None):
    tensors = {"front.w": torch.full((3,), float(round)) if tensor is None else tensor}
    return Checkpoint(round, tensors, {"versions": found.now(), "clock": round}, {})


def written(folder, rounds, found, writer=None):
    writer = writer or CheckpointWriter(folder)
    for round in rounds:
        found.note(f"device-{round}", round)
        found.note("edge-0", round)
        writer.write(of_round(round, found), lambda: None)
    writer.close()


def test_a_checkpoint_has_all_generations_though_it_adds_but_those_of_its_round(tmp_path):
    found = Generations()
    written(tmp_path, (1, 2, 3), found)
    assert load_checkpoint(tmp_path).strategy == {"versions": dict(found.items()), "clock": 3}
    (journal,) = tmp_path.glob("generations.*")
    assert len(journal.read_text().splitlines()) == 3
    assert json.loads(journal.read_text().splitlines()[2]) == {"versions": {"3": {"device": [3], "edge": [0]}}}
    assert "device-3" not in (tmp_path / "state.json").read_text()


def test_a_forgotten_state_is_none_after_it_was_read(tmp_path):
    found = Generations()
    writer = CheckpointWriter(tmp_path)
    found.note("device-1", 1)
    writer.write(of_round(1, found), lambda: None)
    found.forget("device-1")
    writer.write(of_round(2, found), lambda: None)
    writer.close()
    assert load_checkpoint(tmp_path).strategy["versions"] == {}


def test_what_was_begun_behind_a_checkpoint_is_not_of_it(tmp_path):
    """As after a kill between a journal's line and the state that names it."""
    found = Generations()
    written(tmp_path, (1, 2), found)
    (journal,) = tmp_path.glob("generations.*")
    with journal.open("a") as file:
        file.write('{"versions":{"3":{"devi')
    assert load_checkpoint(tmp_path).strategy["versions"] == {"device-1": 1, "device-2": 2, "edge-0": 2}


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_journal_is_refused_in_one_line(tmp_path, damage):
    written(tmp_path, (1, 2), Generations())
    (journal,) = tmp_path.glob("generations.*")
    text = journal.read_text()
    if damage == "gone":
        journal.unlink()
    else:
        journal.write_text(text[:10] if damage == "cut" else text.replace("[1]", "[9]"))
    with pytest.raises(CheckpointError, match=r"generations\.1\.jsonl is damaged .*restore it") as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_where_only_a_journal_s_end_is_damaged_the_checkpoint_before_is_taken(tmp_path):
    written(tmp_path, (1, 2), Generations())
    (journal,) = tmp_path.glob("generations.*")
    journal.write_bytes(journal.read_bytes()[:-4])
    found = load_checkpoint(tmp_path)
    assert (found.round, found.strategy["versions"]) == (1, {"device-1": 1, "edge-0": 1})


def test_who_goes_on_begins_a_journal_and_leaves_the_older_until_nothing_reads_it(tmp_path):
    found = Generations()
    written(tmp_path, (1, 2), found)
    written(tmp_path, (3,), Generations(load_checkpoint(tmp_path).strategy["versions"]))
    assert {path.name for path in tmp_path.glob("generations.*")} == {"generations.1.jsonl", "generations.3.jsonl"}
    expected = {"device-1": 1, "device-2": 2, "device-3": 3, "edge-0": 3}
    assert load_checkpoint(tmp_path).strategy["versions"] == expected
    again = Generations(load_checkpoint(tmp_path).strategy["versions"])
    written(tmp_path, (4, 5), again)
    assert {path.name for path in tmp_path.glob("generations.*")} == {"generations.4.jsonl"}
    assert load_checkpoint(tmp_path).strategy["versions"] == dict(again.items())


def test_a_line_that_was_broken_off_is_written_over(tmp_path):
    found, journal = Generations({"device-1": 1}), GenerationJournal()
    write_entry(tmp_path, journal.entry(1, {"versions": found.now()}))
    (path,) = tmp_path.iterdir()
    with path.open("a") as file:
        file.write("x" * 1000)
    found.note("device-2", 2)
    mark = write_entry(tmp_path, journal.entry(2, {"versions": found.now()}))
    assert read_journal(tmp_path, mark) == {"versions": {"device-1": 1, "device-2": 2}}
    assert path.stat().st_size == mark["bytes"]


def private_run(folder, rounds, **options):
    return fsl.simulate(
        small_model(),
        small_task(),
        strategy="psl",
        cut="pool",
        devices=6,
        devices_per_round=2,
        rounds=rounds,
        batch_size=8,
        out=folder,
        progress=False,
        **options,
    )


def test_a_checkpoint_of_the_first_format_goes_on(tmp_path):
    """It had all generations in `state.json`; the run goes on as one that never stopped."""
    whole = private_run(tmp_path / "whole", 4)
    private_run(tmp_path / "old", 2)
    checkpoint = tmp_path / "old" / "checkpoint"
    for name in ("state.json", "previous.json"):
        state = json.loads((checkpoint / name).read_text())
        state["strategy"] |= read_journal(checkpoint, state.pop("generations"))
        (checkpoint / name).write_text(json.dumps(state | {"format": 1}))
    for journal in checkpoint.glob("generations.*"):
        journal.unlink()
    assert load_checkpoint(checkpoint).strategy["versions"]
    resumed = private_run(tmp_path / "old", 4, resume=True)
    for name, tensor in whole.states["back"].items():
        assert torch.equal(resumed.states["back"][name], tensor)
    assert sorted(p.name for p in (tmp_path / "whole" / "fronts").iterdir()) == sorted(
        p.name for p in (tmp_path / "old" / "fronts").iterdir()
    )


def test_a_strategy_may_give_generations_as_a_plain_mapping(tmp_path):
    writer = CheckpointWriter(tmp_path)
    writer.write(replace(of_round(1, Generations()), strategy={"versions": {"device-1": 1}}), lambda: None)
    writer.close()
    assert load_checkpoint(tmp_path).strategy == {"versions": {"device-1": 1}}
    assert not list(tmp_path.glob("generations.*"))
