"""Packs: private fronts of many devices in one file, of which nothing is lost."""

import errno
import os
import stat

import pytest
import torch

from fsl import files
from fsl.errors import CheckpointError
from fsl.round import generation_pack, node_store
from fsl.round.low_rank_update import LowRankUpdate, start_at
from fsl.round.node_store import Store
from tests.helpers.packs import packs, rows, save, state


def test_each_device_gets_its_own_back(tmp_path):
    store = Store(tmp_path)
    save(store, 4, {device: state(device) for device in (9, 2, 30)})
    for reader in (store, Store(tmp_path)):
        for device in (2, 9, 30):
            found = reader.load(f"fronts/{device}", 4)
            assert torch.equal(found["w"], torch.full((3,), float(device)))
            assert (found["n"].shape, int(found["n"])) == ((), device)
    assert packs(store) == ["4-2.safetensors"]


def test_updates_of_different_lengths_and_starts_lie_in_one_pack(tmp_path):
    store = Store(tmp_path)
    made = {device: rows(start_at(device) if device else "abc", device, device) for device in range(4)}
    save(store, 4, made)
    for device, update in made.items():
        found = store.load_compact(f"fronts/{device}", 4)
        assert found.start == update.start
        assert torch.equal(found.layers[""].inputs, update.layers[""].inputs)
        assert found.layers[""].gradients.shape == (device, 2)
    assert len(packs(store)) == 1


def test_states_and_updates_of_one_round_lie_in_packs_of_their_own(tmp_path):
    store = Store(tmp_path)
    save(store, 1, {0: state(0), 1: rows("abc", 2), 2: state(2), 3: state(3, size=5)})
    assert packs(store) == ["1-0.safetensors", "1-1.safetensors", "1-3.safetensors"]
    assert int(store.load("fronts/2", 1)["n"]) == 2
    assert isinstance(store.load_compact("fronts/1", 1), LowRankUpdate)


def test_many_bytes_become_several_packs(tmp_path, monkeypatch):
    monkeypatch.setattr(generation_pack, "PACK_BYTES", 40)
    store = Store(tmp_path)
    save(store, 1, {device: state(device) for device in range(5)})
    assert packs(store) == ["1-0.safetensors", "1-2.safetensors", "1-4.safetensors"]
    assert [int(store.load(f"fronts/{device}", 1)["n"]) for device in range(5)] == [0, 1, 2, 3, 4]


def test_who_is_in_no_pack_is_told_by_the_path_that_a_file_of_its_own_would_have(tmp_path):
    store = Store(tmp_path)
    save(store, 1, {3: state(3)})
    with pytest.raises(CheckpointError, match=r"fronts/4/1\.safetensors is missing, though round 1 wrote it"):
        store.load("fronts/4", 1)


def test_what_another_node_wrote_meanwhile_is_found(tmp_path):
    one, other = Store(tmp_path), Store(tmp_path)
    save(one, 1, {0: state(0)})
    assert one.load("fronts/0", 1)
    save(other, 1, {1: state(1)})
    assert int(one.load("fronts/1", 1)["n"]) == 1


def test_a_round_that_is_trained_again_by_other_nodes_leaves_nothing_of_the_first_time(tmp_path):
    save(Store(tmp_path), 2, {device: state(7) for device in range(4)})
    for devices in ((2, 3), (0, 1)):
        save(Store(tmp_path), 2, {device: state(device) for device in devices})
    store = Store(tmp_path)
    assert [int(store.load(f"fronts/{device}", 2)["n"]) for device in range(4)] == [0, 1, 2, 3]
    assert packs(store) == ["2-0.safetensors", "2-2.safetensors"]


def test_a_run_that_goes_on_forgets_what_came_after_its_checkpoint(tmp_path):
    store = Store(tmp_path)
    for round in (1, 2, 3):
        save(store, round, {round: state(round)})
    store.packs.discard_after(2)
    assert packs(store) == ["1-1.safetensors", "2-2.safetensors"]


def test_only_their_owner_may_read_them(tmp_path):
    store = Store(tmp_path)
    before = os.umask(0)
    try:
        save(store, 1, {0: state(0)})
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "packs").iterdir()] == [0o600]
    assert stat.S_IMODE((tmp_path / "packs").stat().st_mode) == 0o700


def test_they_are_waited_for(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr("fsl.round.node_store.sync", lambda paths: waited.extend(paths))
    store = Store(tmp_path)
    save(store, 1, {0: state(0), 1: rows("abc", 1)})
    store.sync()
    assert sorted(path.name for path in waited) == ["1-0.safetensors", "1-1.safetensors"]


def test_a_full_disk_is_told_as_the_system_does_and_leaves_what_was_there(tmp_path, monkeypatch):
    store = Store(tmp_path)
    save(store, 1, {0: state(0)})

    def full(tensors, path, metadata):
        raise files.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save(store, 1, {0: state(1)})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "packs" / "1-0.safetensors"))
    assert int(Store(tmp_path).load("fronts/0", 1)["n"]) == 0
    assert len(list((tmp_path / "packs").iterdir())) == 1


# Fronts that wait for one another, where nobody gives them together.


def waiting(tmp_path):
    return Store(tmp_path, packs_fronts=True)


def test_fronts_of_a_round_become_one_pack_before_the_node_reports(tmp_path):
    store, front = waiting(tmp_path), {"w": torch.zeros(3)}
    for device in range(3):
        front["w"].fill_(device)  # in the memory of the device before
        store.save(f"fronts/{device}", 1, front, (0, 0))
    assert packs(store) == []
    store.sync()
    assert packs(store) == ["1-0.safetensors"]
    assert [store.load(f"fronts/{device}", 1)["w"][0] for device in range(3)] == [0, 1, 2]
    assert not (tmp_path / "fronts").exists()


def test_a_front_that_waits_can_be_read(tmp_path):
    store = waiting(tmp_path)
    store.save("fronts/3", 1, {"w": torch.ones(3)}, (0, 0))
    assert torch.equal(store.load("fronts/3", 1)["w"], torch.ones(3))


def test_many_fronts_are_written_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(node_store, "PACK_BYTES", 40)
    store = waiting(tmp_path)
    for device in range(5):
        store.save(f"fronts/{device}", 1, state(device), (0, 0))
    assert packs(store) == ["1-0.safetensors", "1-2.safetensors"]
    store.sync()
    assert int(store.load("fronts/4", 1)["n"]) == 4


def test_what_waited_in_a_round_that_failed_is_never_written(tmp_path):
    store = waiting(tmp_path)
    store.save("fronts/3", 1, state(1), (0, 0))
    store.begin()
    store.save("fronts/4", 2, state(2), (0, 0))
    store.sync()
    assert packs(store) == ["2-4.safetensors"]


def test_all_else_that_devices_keep_waits_for_nobody(tmp_path):
    store = waiting(tmp_path)
    store.save("tails/3", 1, state(1), (0, 0))
    assert store.path("tails/3", 1).exists()


# What is damaged.
