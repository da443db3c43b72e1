"""Packs that nobody needs go, and no front with them that somebody needs."""

import errno

import pytest
import torch

from fsl.errors import CheckpointError
from fsl.round import generation_pack, pack_folder
from fsl.round.generation_pack import GenerationPack, write_pack
from fsl.round.low_rank_update import start_at
from fsl.round.node_store import Store
from fsl.round.superseded_packs import SupersededPacks
from tests.helpers.packs import packs, rows, save, state


class Rounds:
    """A run's rounds as the store hears of them; remembers what counts in the last two checkpoints."""

    def __init__(self, folder):
        self.store = Store(folder)
        self.superseded = SupersededPacks(self.store.packs, durable=False)
        self.now, self.last, self.changed = {}, {}, set()

    def train(self, round, fronts, counted=None):
        save(self.store, round, fronts)
        self.last, self.now = self.now, self.now | dict.fromkeys(fronts if counted is None else counted, round)
        self.superseded.collect(self.changed, lambda device: {self.now.get(device, 0), self.last.get(device, 0)})
        self.changed = {device for device in self.now if self.now[device] == round}


def test_a_pack_goes_when_both_checkpoints_name_later_ones(tmp_path):
    run = Rounds(tmp_path)
    found = []
    for round in range(1, 5):
        run.train(round, {device: state(round) for device in range(3)})
        found.append(packs(run.store))
    assert found == [[f"{r}-0.safetensors" for r in (round - 1, round) if r] for round in range(1, 5)]


def test_half_a_pack_that_nobody_needs_goes_and_the_rest_stays(tmp_path):
    run = Rounds(tmp_path)
    run.train(1, {device: state(device, size=1000) for device in range(4)})
    size = (tmp_path / "packs" / "1-0.safetensors").stat().st_size
    run.train(2, {0: state(9)})
    run.train(3, {1: state(9)})
    assert (tmp_path / "packs" / "1-0.safetensors").stat().st_size == size
    run.train(4, {0: state(9)})
    assert (tmp_path / "packs" / "1-0.safetensors").stat().st_size < 0.6 * size
    store = Store(tmp_path)
    assert [int(store.load(f"fronts/{device}", 1)["n"]) for device in (2, 3)] == [2, 3]
    with pytest.raises(CheckpointError, match="is missing"):
        store.load("fronts/0", 1)


def test_the_pack_that_an_update_counts_from_stays_as_long_as_the_update(tmp_path):
    run = Rounds(tmp_path)
    run.train(1, {0: {"weight": torch.zeros(2, 4)}, 1: {"weight": torch.zeros(2, 4)}})
    for round in range(2, 6):
        run.train(round, {0: rows(start_at(1), round), 1: rows(start_at(1), 1)})
    assert packs(run.store) == ["1-0.safetensors", "4-0.safetensors", "5-0.safetensors"]
    assert torch.equal(Store(tmp_path).load("fronts/0", 5)["weight"], torch.full((2, 4), -5.0))
    for round in (6, 7, 8):
        run.train(round, {0: {"weight": torch.ones(2, 4)}, 1: {"weight": torch.ones(2, 4)}})
    assert packs(run.store) == ["7-0.safetensors", "8-0.safetensors"]


def test_work_that_the_cloud_never_heard_of_goes_when_its_device_has_trained_again(tmp_path):
    run = Rounds(tmp_path)
    run.train(1, {0: state(1), 1: state(1)})
    run.train(2, {0: state(2), 1: state(2)}, counted=[0])
    for round in (3, 4, 5):
        run.train(round, {0: state(round)})
    assert int(Store(tmp_path).load("fronts/1", 1)["n"]) == 1
    for round in (6, 7, 8):
        run.train(round, {0: state(round), 1: state(round)})
    assert packs(run.store) == ["7-0.safetensors", "8-0.safetensors"]


def test_work_that_no_checkpoint_names_does_not_stay(tmp_path):
    run = Rounds(tmp_path)
    run.train(1, {0: state(1), 1: state(1)})
    for round in range(2, 6):  # as where an edge's back is lost after its devices have saved their fronts
        run.train(round, {0: state(round), 1: state(round)}, counted=[])
    assert packs(run.store) == ["1-0.safetensors"]


def test_a_run_that_goes_on_counts_what_lies_there(tmp_path):
    first = Rounds(tmp_path)
    first.train(1, {device: state(1) for device in range(4)})
    first.train(2, {device: state(2) for device in range(2)})
    second = Rounds(tmp_path)
    second.now = second.last = dict(first.now)
    second.train(3, {0: state(3)})
    assert packs(second.store) == ["1-0.safetensors", "2-0.safetensors", "3-0.safetensors"]
    assert [int(second.store.load(f"fronts/{device}", 1)["n"]) for device in (2, 3)] == [1, 1]
    assert GenerationPack.open(tmp_path / "packs" / "1-0.safetensors").devices.tolist() == [2, 3]


def test_a_run_that_ends_leaves_states_alone_and_of_those_that_count(tmp_path):
    store = Store(tmp_path)
    save(store, 1, {device: {"weight": torch.zeros(2, 4)} for device in range(3)})
    save(store, 2, {device: rows(start_at(1), 1) for device in range(3)})
    save(store, 3, {device: rows(start_at(1), 2) for device in range(2)})
    store.settle(lambda device: {2} if device == 2 else {3})
    for reader in (store, Store(tmp_path)):
        values = [
            reader.load(f"fronts/{device}", round)["weight"].unique().tolist() for device, round in ((0, 3), (2, 2))
        ]
        assert values == [[-2.0], [-1.0]]
    assert packs(store) == ["2-2.safetensors", "3-0.safetensors"]
    assert not any(GenerationPack.open(path).holds_updates for path in (tmp_path / "packs").iterdir())


@pytest.mark.parametrize("written", range(4))
def test_a_run_that_is_stopped_while_it_ends_loses_no_front(tmp_path, monkeypatch, written):
    monkeypatch.setattr(generation_pack, "PACK_BYTES", 40)  # of each state
    store = Store(tmp_path)
    save(store, 1, {device: {"weight": torch.zeros(2, 4)} for device in range(3)})
    monkeypatch.setattr(generation_pack, "PACK_BYTES", 1 << 20)
    save(store, 2, {device: rows(start_at(1), device + 1) for device in range(3)})
    monkeypatch.setattr(generation_pack, "PACK_BYTES", 16)
    left = iter(range(written))

    def write(*given):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_pack(*given)

    monkeypatch.setattr(pack_folder, "write_pack", write)
    try:
        store.settle(lambda device: {2})
    except OSError:
        monkeypatch.setattr(pack_folder, "write_pack", write_pack)
        Store(tmp_path).settle(lambda device: {2})
    found = [Store(tmp_path).load(f"fronts/{device}", 2) for device in range(3)]
    assert [one["weight"].unique().tolist() for one in found] == [[-1.0], [-2.0], [-3.0]]
    assert packs(store) == ["2-0.safetensors", "2-1.safetensors", "2-2.safetensors"]


@pytest.mark.parametrize("then", ["goes on", "ends"])
def test_nothing_stays_of_a_pack_whose_writer_was_killed(tmp_path, then):
    store = Store(tmp_path)
    save(store, 1, {0: state(0)})
    begun = tmp_path / "packs" / ".2-0.safetensors.0123456789abcdef.tmp"
    begun.write_bytes(b"rows of the training data")
    if then == "goes on":
        store.packs.discard_after(1)
    else:
        store.settle(lambda device: {1})
    assert not begun.exists()
    assert packs(store) == ["1-0.safetensors"]
