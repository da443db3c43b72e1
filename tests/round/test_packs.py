"""Packs: private fronts of many devices in one file, of which nothing is lost and nothing stays that nobody needs."""

import errno
import os
import stat

import pytest
import torch

from fsl import files
from fsl.errors import CheckpointError
from fsl.round import generation_pack, node_store, pack_folder
from fsl.round.generation_pack import GenerationPack, write_pack
from fsl.round.low_rank_update import LayerRows, LowRankUpdate, start_at
from fsl.round.node_store import Store
from fsl.round.pack_folder import PackName
from fsl.round.superseded_packs import SupersededPacks


def state(value, size=3):
    return {"w": torch.full((size,), float(value)), "n": torch.tensor(int(value))}


def rows(start, count, value=1.0):
    return LowRankUpdate(start, {"": LayerRows(torch.full((count, 4), value), torch.ones(count, 2))})


def save(store, round, fronts):
    store.save_together(round, list(fronts.items()), dict.fromkeys(fronts, (0, 0)))


def packs(store):
    return [str(name) for name in store.packs.names()]


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


@pytest.mark.parametrize("left", [0, 7, 60, -1])
def test_a_pack_that_is_cut_short_is_told_by_its_path(tmp_path, left):
    store = Store(tmp_path)
    save(store, 1, {0: state(0), 1: state(1)})
    path = tmp_path / "packs" / "1-0.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"packs/1-0\.safetensors"):
        Store(tmp_path).load("fronts/1", 1)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("devices", torch.tensor([1, 0]), "its devices are in no order"),
        ("devices", None, "'devices'"),
        ("states:w", torch.ones(3, 3), "'states:w' is of 3 devices, and there are 2"),
        ("starts", torch.tensor([0, 5]), "a device's start has no name"),
        ("starts", torch.tensor([0, -1]), "a device's start has no name"),
        ("ends:", torch.tensor([3, 1]), "the rows of layer '' are not as many"),
        ("ends:", torch.tensor([1, 5]), "the rows of layer '' are not as many"),
        ("gradients:", torch.ones(2, 2), "the rows of layer '' are not as many"),
        ("inputs:", None, "'inputs:'"),
    ],
)
def test_tensors_that_are_none_of_a_packs_are_refused(tmp_path, name, tensor, words):
    path = tmp_path / "1-0.safetensors"
    members = {0: state(0), 1: state(1)} if name in ("devices", "states:w") else {0: rows("a", 1), 1: rows("b", 2)}
    write_pack(path, members, durable=False)
    tensors, metadata = files.load_tensors(path), files.load_metadata(path)
    tensors |= {} if tensor is None else {name: tensor}
    files.save_tensors(path, {n: t for n, t in tensors.items() if tensor is not None or n != name}, metadata)
    with pytest.raises(CheckpointError, match=f"{path} is damaged .*{words}"):
        GenerationPack.open(path)


def test_other_files_in_the_folder_are_no_packs(tmp_path):
    store = Store(tmp_path)
    save(store, 1, {0: state(0)})
    for name in (".1-1.safetensors.tmp", "1-x.safetensors", "notes.txt", "1-1.safetensors.bak", "-1.safetensors"):
        (tmp_path / "packs" / name).write_text("")
    assert store.packs.names() == [PackName(1, 0)]


# Which of them go, and when.


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
