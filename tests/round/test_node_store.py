"""What a node keeps of its devices: read from memory while it is recent, mapped where it is large, never aliased."""

import pytest
import torch

from fsl.errors import CheckpointError
from fsl.round import node_store
from fsl.round.low_rank_update import LayerRows, LowRankUpdate, start_at
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


# Updates: rows over a start that many owners share.


def update(store, rows=3, layer="0"):
    start = {"0.weight": torch.arange(8.0).view(2, 4), "0.bias": torch.ones(2)}
    change = LayerRows(torch.ones(rows, 4), torch.full((rows, 2), 0.5))
    return start, LowRankUpdate(store.keep_start(start), {layer: change})


def saved_update(store, version=1, **options):
    start, made = update(store, **options)
    store.save_together(version, [(3, made)], {3: (0, 0)})
    return start, made


@pytest.mark.parametrize("rows", [0, 3, 1 << 16])
def test_an_update_is_loaded_as_the_state_that_it_makes_of_its_start(tmp_path, rows):
    store = Store(tmp_path)
    start, _ = saved_update(store, rows=rows)
    for reader in (store, Store(tmp_path)):
        found = reader.load("fronts/3", 1)
        assert torch.equal(found["0.weight"], start["0.weight"] - 0.5 * rows)
        assert torch.equal(found["0.bias"], 1 - torch.full((2,), 0.5 * rows))
        assert len(reader.load_compact("fronts/3", 1).layers["0"].inputs) == rows


def test_a_start_is_stored_once(tmp_path):
    store = Store(tmp_path)
    for round in range(1, 6):
        saved_update(store, round)
    assert len(list((tmp_path / "starts").iterdir())) == 1


def test_an_update_without_its_start_is_told_by_the_starts_path(tmp_path):
    store = Store(tmp_path)
    made = saved_update(store)[1]
    store.path(f"starts/{made.start}", 1).unlink()
    with pytest.raises(CheckpointError, match=f"starts/{made.start}/1.safetensors is missing, and private"):
        Store(tmp_path).load("fronts/3", 1)


def test_rows_of_another_model_are_refused(tmp_path):
    store = Store(tmp_path)
    saved_update(store, layer="1")
    with pytest.raises(CheckpointError, match="the rows kept of layer '1' do not fit it; another model wrote them"):
        store.load("fronts/3", 1)


def test_an_update_over_an_update_is_refused(tmp_path):
    store = Store(tmp_path)
    made = saved_update(store)[1]
    store.save_together(2, [(3, LowRankUpdate(start_at(1), made.layers))], {3: (1, 1)})
    with pytest.raises(CheckpointError, match=r"round 1 left fronts/3 an update, and another one counts from it"):
        store.load("fronts/3", 2)


def test_a_front_by_itself_takes_the_place_of_one_in_a_pack(tmp_path):
    store = Store(tmp_path)
    saved_update(store)
    store.save("fronts/3", 1, {"0.weight": torch.ones(2)}, (0, 0))
    for reader in (store, Store(tmp_path)):
        assert torch.equal(reader.load("fronts/3", 1)["0.weight"], torch.ones(2))


def test_a_front_in_a_pack_takes_the_place_of_one_by_itself(tmp_path):
    store = Store(tmp_path)
    for round in (1, 2, 3):
        store.save("fronts/3", round, {"0.weight": torch.full((2,), float(round))}, (round - 1,))
    store.save_together(3, [(3, {"0.weight": torch.zeros(2)})], {3: (2, 2)})
    for reader in (store, Store(tmp_path)):
        assert torch.equal(reader.load("fronts/3", 3)["0.weight"], torch.zeros(2))
    assert [path.name for path in (tmp_path / "fronts/3").iterdir()] == ["2.safetensors"]


def test_the_generation_that_a_packed_update_counts_from_stays_as_long_as_that_is_kept(tmp_path):
    store = Store(tmp_path)
    change = {"0": LayerRows(torch.ones(1, 4), torch.ones(1, 2))}
    store.save("fronts/3", 1, {"0.weight": torch.zeros(2, 4)}, ())
    for round in (2, 3, 4):
        store.save_together(round, [(3, LowRankUpdate(start_at(1), change))], {3: (round - 1,)})
    store.save("fronts/3", 5, {"0.weight": torch.ones(2, 4)}, (4,))
    assert torch.equal(Store(tmp_path).load("fronts/3", 4)["0.weight"], torch.full((2, 4), -1.0))
    assert sorted(path.stem for path in (tmp_path / "fronts/3").iterdir()) == ["1", "5"]
    store.save_together(6, [(3, LowRankUpdate(start_at(5), change))], {3: (5,)})
    assert [path.stem for path in (tmp_path / "fronts/3").iterdir()] == ["5"]


@pytest.mark.parametrize("again", [False, True])
def test_a_start_that_is_not_what_its_name_says_is_no_start(tmp_path, again):
    store = Store(tmp_path)
    made = saved_update(store)[1]
    path = store.path(f"starts/{made.start}", 1)
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    other = Store(tmp_path)
    if again:  # a run that begins with the same weights writes it anew
        update(other)
        assert torch.equal(other.load("fronts/3", 1)["0.bias"], torch.full((2,), -0.5))
        return
    with pytest.raises(CheckpointError, match=f"starts/{made.start}/1.safetensors is damaged"):
        other.load("fronts/3", 1)


def test_a_start_that_was_there_is_waited_for_as_well(tmp_path, monkeypatch):
    made = update(Store(tmp_path))[1]
    store, waited = Store(tmp_path), []
    monkeypatch.setattr(node_store, "sync", lambda paths: waited.extend(paths))
    update(store)
    store.sync()
    assert waited == [store.path(f"starts/{made.start}", 1)]


@pytest.mark.parametrize("size", [3, 1000])
def test_a_generation_takes_the_file_of_one_that_nobody_needs(tmp_path, size):
    store = Store(tmp_path)
    for round in range(1, 4):
        store.save("fronts/3", round, {"w": torch.full((100,), float(round))}, (round - 1,))
    dead, kept = store.path("fronts/3", 2), store.path("fronts/3", 3)
    before = dead.stat().st_ino, kept.stat().st_ino
    store.save("fronts/3", 4, {"w": torch.full((size,), 4.0)}, (3,))
    assert (store.path("fronts/3", 4).stat().st_ino, kept.stat().st_ino) == before
    assert sorted(path.name for path in kept.parent.iterdir()) == ["3.safetensors", "4.safetensors"]
    for reader in (store, Store(tmp_path)):
        assert torch.equal(reader.load("fronts/3", 4)["w"], torch.full((size,), 4.0))
        assert torch.equal(reader.load("fronts/3", 3)["w"], torch.full((100,), 3.0))
