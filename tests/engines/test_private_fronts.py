"""Private fronts that are stored as what a device's few steps changed equal those of the loop, and go on from there."""

import errno
from collections import Counter

import pytest
import torch
from fsl.strategies import PSL, SGLR, SplitFedV1, SplitFedV3
from torch import nn

from fsl.engines import private_fronts
from fsl.engines.weight_stack import WeightStack
from fsl.files import load_tensors
from fsl.round.low_rank_update import LowRankUpdate
from fsl.round.node_store import Store
from fsl.run.kept_fronts import KeptFronts
from fsl.segments.learning_rate import Schedule
from fsl.settings.optimizer_settings import Optimizer
from tests.helpers.engine_runs import assert_near, by, in_float64
from tests.helpers.runs import MOMENTUM, SGD, KillAfter, KilledError
from tests.helpers.small import small_task

DAMPED = Optimizer("torch.optim.SGD", lr=0.05, options={"momentum": 0.8, "dampening": 0.3})
STEPPED = Optimizer("torch.optim.SGD", lr=0.05, schedule=Schedule(milestones=(0.3, 0.6), gamma=0.5))
OPTIONS = {"cut": "2", "batch_size": 2, "devices": 4, "samples_per_device": 3, "rounds": 3, "devices_per_round": 3}


@pytest.fixture
def saved(monkeypatch):
    """Counts by round how many fronts were stored as updates; the loop stores none."""
    counts = Counter()
    save_together = Store.save_together

    def noted(self, version, fronts, keep):
        def each():
            for device, front in fronts:
                if isinstance(front, LowRankUpdate):
                    counts[version] += 1
                yield device, front

        return save_together(self, version, each(), keep)

    monkeypatch.setattr(Store, "save_together", noted)
    return counts


def deep(bias=True, width=64):
    torch.manual_seed(0)
    front = nn.Sequential(nn.Linear(width, 48, bias=bias), nn.Tanh(), nn.Linear(48, 32))
    return nn.Sequential(nn.Flatten(), front, nn.Tanh(), nn.Linear(32, 4))


def fronts(folder):
    return {path.stem: load_tensors(path) for path in sorted((folder / "fronts").glob("*.safetensors"))}


def rows_of(folder):
    files = (folder / "checkpoint" / "devices").rglob("*.safetensors")
    return [name for path in files for name in load_tensors(path) if name.startswith("inputs:")]


def both(strategy, model, **options):
    options = OPTIONS | options
    model, data = in_float64(model, small_task())
    one, other = (by(engine, strategy, model, data=data, **options) for engine in ("loop", "stacked"))
    assert_near(one, other, 1e-9)
    for device in range(4) if strategy.fronts == "private" else ():
        for name, tensor in one.front(device).items():
            torch.testing.assert_close(other.front(device)[name], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strategy", [PSL(), SGLR(phi=0.5, alpha=0.5), SplitFedV3()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("optimizer", [SGD, DAMPED, STEPPED], ids=["sgd", "damped", "stepped"])
def test_updates_over_several_rounds_are_the_fronts_of_the_loop(strategy, optimizer, saved):
    both(strategy, deep(), optimizer=optimizer)
    assert saved == {1: 3, 2: 3, 3: 3}


def test_a_front_without_a_bias_is_an_update_too(saved):
    both(PSL(), deep(bias=False))
    assert saved == {1: 3, 2: 3, 3: 3}


def test_a_front_that_is_one_layer_is_an_update_too(saved, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 4))
    both(PSL(), model, cut="1")
    assert saved == {1: 3, 2: 3, 3: 3}


def test_devices_with_more_samples_have_more_rows(saved):
    both(PSL(), deep(), partition=[range(1), range(1, 4), range(4, 6), range(6, 9)], samples_per_device=None)
    assert saved == {1: 3, 2: 3, 3: 3}


def test_a_front_whose_rows_are_many_becomes_a_state_and_the_next_rows_count_from_that(saved, monkeypatch):
    monkeypatch.setattr(private_fronts, "_SMALL", 0.25)
    both(PSL(), deep(), rounds=9, devices_per_round=4)
    assert saved == {1: 4, 2: 4, 3: 4, 5: 4, 6: 4, 7: 4, 9: 4}


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_first_layer_has_no_more_rows_than_a_device_has_examples(epochs, saved, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 4))
    both(PSL(), model.double(), cut="1", local_epochs=epochs)
    options = OPTIONS | {"cut": "1", "devices_per_round": 4, "local_epochs": epochs, "rounds": 4}
    with pytest.raises(KilledError):
        by("stacked", PSL(), model.float(), out=tmp_path, observers=[KillAfter(3)], **options)
    packs = [load_tensors(path) for path in (tmp_path / "checkpoint" / "devices").rglob("*-*.safetensors")]
    assert [len(pack["inputs:1"]) for pack in packs] == [4 * 3] * len(packs)
    assert packs


class Tokens(nn.Module):
    """Eight tokens of eight numbers of each input."""

    def forward(self, inputs):
        return inputs.reshape(len(inputs), 8, 8)


@pytest.mark.parametrize("strategy", [PSL(), SplitFedV1()], ids=["private", "averaged"])
def test_a_layer_over_tokens_has_more_rows_than_its_device_and_some_devices_end_early(strategy):
    torch.manual_seed(0)
    front = nn.Sequential(Tokens(), nn.Linear(8, 200), nn.Tanh())
    model = nn.Sequential(front, nn.Flatten(), nn.Linear(1600, 4))
    shares = [range(2), range(2, 12), range(12, 17), range(17, 18)]
    both(strategy, model, cut="0", partition=shares, samples_per_device=None, devices_per_round=4)


def test_devices_that_begin_by_a_state_by_rows_and_anew_are_one_stack(saved, monkeypatch):
    monkeypatch.setattr(private_fronts, "_SMALL", 0.25)
    both(PSL(), deep(), rounds=12, devices=6, devices_per_round=3)
    assert sum(saved.values()) < 3 * 12


def test_weights_that_decay_are_stored_as_states(saved):
    both(PSL(), deep(), optimizer=MOMENTUM)
    assert not saved


def test_a_run_goes_on_from_updates_by_the_same_bits(saved, tmp_path):
    options = OPTIONS | {"devices_per_round": 4}  # all have a front of their own, and the cloud sends none
    by("stacked", PSL(), deep(), out=tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        by("stacked", PSL(), deep(), out=tmp_path / "killed", observers=[KillAfter(2)], **options)
    by("stacked", PSL(), deep(), out=tmp_path / "killed", resume=True, **options)
    whole, resumed = fronts(tmp_path / "whole"), fronts(tmp_path / "killed")
    assert all(torch.equal(whole[d][name], resumed[d][name]) for d in whole for name in whole[d])
    assert saved[3] == 8


@pytest.mark.parametrize("rounds", [3, 5])  # whose fronts are updates in the end, and states that follow an update
def test_only_a_run_that_was_killed_leaves_rows_of_the_training_data(rounds, tmp_path):
    options = OPTIONS | {"devices_per_round": 4, "rounds": rounds}
    with pytest.raises(KilledError):
        by("stacked", PSL(), deep(), out=tmp_path, observers=[KillAfter(rounds - 1)], **options)
    assert rows_of(tmp_path)
    result = by("stacked", PSL(), deep(), out=tmp_path, resume=True, **options)
    assert not rows_of(tmp_path)
    kept = Store(tmp_path / "checkpoint" / "devices").load("fronts/1", rounds)
    assert kept
    assert all(torch.equal(result.front(1)[name], tensor) for name, tensor in kept.items())


def test_a_run_that_goes_on_deletes_what_a_round_without_a_checkpoint_left(tmp_path):
    store = Store(tmp_path)
    for round in (2, 3):
        store.save_together(round, [(1, {"w": torch.ones(2)})], {1: (0, 0)})
    KeptFronts(store).resumed(2, {"versions": {"device-1": 2}})
    assert [name.round for name in Store(tmp_path).packs.names()] == [2]


def test_memory_of_the_round_before_is_taken_only_where_it_fits():
    stack, sizes, cpu = WeightStack.__new__(WeightStack), {torch.float32: 5}, torch.device("cpu")
    first = stack.room(3, sizes, cpu)
    assert stack.room(3, sizes, cpu) is first
    for devices, more in ((2, {}), (2, {torch.float64: 1}), (3, {})):
        found = stack.room(devices, sizes | more, cpu)
        assert {dtype: tuple(flat.shape) for dtype, flat in found.items()} == {
            dtype: (devices, size) for dtype, size in (sizes | more).items()
        }


@pytest.mark.parametrize("rounds", [3, 5])
def test_a_finished_run_goes_on_from_the_checkpoint_before_where_the_last_is_damaged(rounds, tmp_path):
    options = OPTIONS | {"devices_per_round": 4}
    by("stacked", PSL(), deep(), out=tmp_path / "whole", **options | {"rounds": rounds + 1})
    by("stacked", PSL(), deep(), out=tmp_path / "damaged", **options | {"rounds": rounds})
    (tmp_path / "damaged" / "checkpoint" / "state.json").write_text("{")
    by("stacked", PSL(), deep(), out=tmp_path / "damaged", resume=True, **options | {"rounds": rounds + 1})
    whole, resumed = fronts(tmp_path / "whole"), fronts(tmp_path / "damaged")
    for device, front in whole.items():
        for name, tensor in front.items():
            torch.testing.assert_close(resumed[device][name], tensor, rtol=1e-5, atol=1e-6)


def test_a_disk_that_is_full_is_no_reason_to_train_the_round_again(monkeypatch, caplog):
    def full(self, *given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "save_together", full)
    with pytest.raises(OSError, match="No space left on device"):
        by("stacked", PSL(), deep(), **OPTIONS)
    assert not caplog.messages
