"""What a node keeps of its devices: read from memory while it is recent, mapped where it is large, never aliased."""

import pytest
import torch

from fsl.errors import CheckpointError
from fsl.round import node_store
from fsl.round.node_store import Store
from fsl.round.recent_files import RecentFiles


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, and that were mapped."""
    seen: dict[str, list[str]] = {"read": [], "mapped": []}

    def noting(kind, real):
        def noted(path):
            seen[kind].append(path.parent.name)
            return real(path)

        return noted

    monkeypatch.setattr(node_store, "read_bytes", noting("read", node_store.read_bytes))
    monkeypatch.setattr(node_store, "map_tensors", noting("mapped", node_store.map_tensors))
    return seen


def test_what_was_just_saved_or_read_is_not_read_again(tmp_path, reads):
    store = Store(tmp_path)
    store.save("fronts/3", 1, {"w": torch.ones(5)}, ())
    assert torch.equal(store.load("fronts/3", 1)["w"], torch.ones(5))
    assert reads["read"] == []
    other = Store(tmp_path)
    for _ in range(2):
        assert torch.equal(other.load("fronts/3", 1)["w"], torch.ones(5))
    assert reads["read"] == ["3"]


@pytest.mark.parametrize("size", [5, 1 << 19])
def test_who_changes_what_was_loaded_changes_nothing_kept(tmp_path, size):
    store = Store(tmp_path)
    store.save("optimizers/fronts/3", 1, {"w": torch.ones(size)}, ())
    store.load("optimizers/fronts/3", 1)["w"].zero_()
    assert torch.equal(store.load("optimizers/fronts/3", 1)["w"], torch.ones(size))
    assert torch.equal(Store(tmp_path).load("optimizers/fronts/3", 1)["w"], torch.ones(size))


def test_what_is_large_is_mapped_and_stays_readable_after_it_is_replaced(tmp_path, reads):
    store = Store(tmp_path)
    store.save("fronts/3", 1, {"w": torch.ones(1 << 19), "n": torch.tensor(4)}, ())
    found = store.load("fronts/3", 1)
    store.save("fronts/3", 2, {"w": torch.zeros(1 << 19)}, ())
    assert not store.path("fronts/3", 1).exists()
    assert torch.equal(found["w"], torch.ones(1 << 19))
    assert found["n"] == 4
    assert reads == {"read": [], "mapped": ["3"]}


@pytest.mark.parametrize("size", [5, 1 << 19])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_what_is_lost_on_the_disk_is_not_taken_from_memory(tmp_path, size, damage):
    store = Store(tmp_path)
    store.save("fronts/3", 1, {"w": torch.ones(size)}, ())
    path = store.path("fronts/3", 1)
    path.write_bytes(path.read_bytes()[:-4]) if damage == "cut" else path.unlink()
    with pytest.raises(CheckpointError, match=r"1\.safetensors is (no readable|missing)"):
        store.load("fronts/3", 1)


def test_recent_files_are_bounded_in_bytes_and_the_oldest_are_forgotten(tmp_path):
    recent, paths = RecentFiles(100), [tmp_path / str(number) for number in range(4)]
    for path in paths:
        path.write_bytes(b"x" * 40)
    for path in paths[:2]:
        recent.put(path, path.stat(), path.read_bytes())
    assert recent.get(paths[0], paths[0].stat()) == b"x" * 40
    recent.put(paths[2], paths[2].stat(), paths[2].read_bytes())
    assert [recent.get(path, path.stat()) is not None for path in paths] == [True, False, True, False]
    recent.put(paths[3], paths[3].stat(), b"x" * 101)
    assert recent.get(paths[3], paths[3].stat()) is None
    recent.forget(paths[0])
    recent.put(paths[1], paths[1].stat(), paths[1].read_bytes())
    assert [recent.get(path, path.stat()) is not None for path in paths] == [False, True, True, False]


def test_old_generations_are_forgotten_with_their_files(tmp_path):
    store = Store(tmp_path)
    for version in range(1, 5):
        store.save("fronts/3", version, {"w": torch.full((3,), float(version))}, (version - 1,))
    assert len(store._recent._contents) == 2


def test_a_store_of_a_run_whose_folder_goes_waits_for_no_disk(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(node_store, "sync", waited.extend)
    for durable in (True, False):
        store = Store(tmp_path, durable)
        store.save("fronts/3", 1, {"w": torch.ones(5)}, ())
        store.sync()
    assert waited == [Store(tmp_path).path("fronts/3", 1)]
