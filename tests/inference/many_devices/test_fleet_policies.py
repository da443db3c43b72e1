"""A policy learns what is best, its file gives it back, and it serves no other fleet."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from fsl.errors import CheckpointError, ConfigError
from fsl.files import save_tensors
from fsl.inference.many_devices import (
    FleetEpisodes,
    FleetPolicy,
    FleetSimulation,
    GreedyFleet,
    GreedyInTurn,
    LocalFleet,
    OffloadingFleet,
    PpoOptions,
    TakingTurns,
    enumerated_optimum,
    evaluated,
    jetson_nano_resnet18,
    load_fleet_policy,
    searched_actions,
    train_fleet_policy,
)
from tests.helpers.fleets import fleet

SMALL = PpoOptions(slots=64, copies=4, rollout=4, epochs=2, batch=8)


@cache
def two_devices():
    """A fleet, episodes, and the enumerated optimum's cost in each."""
    setting = fleet(2, mean_tasks=20.0, faster=20.0)
    episodes = FleetEpisodes.drawn(setting, 2, 5)
    return setting, episodes, evaluated(enumerated_optimum(setting, episodes, powers=7), setting, episodes).costs


def actions(policy, setting):
    told = policy.actions(setting, FleetSimulation(setting, 5, 7).view)
    return np.concatenate([told.points, told.channels, told.watts])


@pytest.mark.slow
def test_the_same_seed_trains_the_same_policy():
    setting = fleet(2)
    one, two, other = (train_fleet_policy(setting, seed=seed, options=SMALL).actor for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert not torch.equal(one.points.weight, other.points.weight)


def test_a_policys_file_gives_it_back(tmp_path):
    setting = fleet(3, 2)
    policy = train_fleet_policy(setting, options=SMALL)
    policy.save(tmp_path / "policy.safetensors")
    assert (actions(load_fleet_policy(tmp_path / "policy.safetensors"), setting) == actions(policy, setting)).all()


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (fleet(3, 2), "devices=2, and here it is 3"),
        (fleet(2, 1), "channels=2, and here it is 1"),
        (fleet(2, 2, farthest=200.0), "farthest=100.0, and here it is 200.0"),
        (
            replace(fleet(2, 2), table=replace(jetson_nano_resnet18(), model="VGG16")),
            "model=ResNet18, and here it is VGG16; train one for this fleet",
        ),
    ],
)
def test_a_policy_for_other_devices_is_refused(setting, line):
    policy = FleetPolicy.untrained(fleet(2, 2), 0)
    with pytest.raises(ConfigError, match=line):
        evaluated(policy, setting, FleetEpisodes.at(setting, 50.0))


def test_a_file_that_is_no_policy_is_refused(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"is no policy for a fleet; give a file that FleetPolicy\.save wrote"):
        load_fleet_policy(tmp_path / "x.safetensors")
    FleetPolicy.untrained(fleet(1), 0).save(tmp_path / "p.safetensors")
    data = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "p.safetensors").write_bytes(data.replace(b'\\"devices\\": 1', b'\\"devices\\": 2'))
    with pytest.raises(CheckpointError, match=r"is no policy for a fleet: .*first\.weight"):
        load_fleet_policy(tmp_path / "p.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule", [LocalFleet(), OffloadingFleet(), GreedyFleet(), GreedyFleet("round robin"), GreedyInTurn()]
)
def test_no_baseline_beats_the_enumerated_optimum(rule):
    setting, episodes, best = two_devices()
    assert (best <= evaluated(rule, setting, episodes).costs * (1 + 1e-9)).all()


def test_taking_turns_beats_all_fixed_actions_of_two_devices_in_one_channel():
    setting = fleet(2, mean_tasks=50.0, slot_seconds=0.05)
    episodes = FleetEpisodes.at(setting, 50.0)
    best = evaluated(enumerated_optimum(setting, episodes, powers=7), setting, episodes).costs
    found = evaluated(TakingTurns(), setting, episodes, logs=True)
    assert found.costs < best
    assert found.offloaded == 1


def test_taking_turns_computes_locally_meanwhile_where_energy_is_cheap():
    setting = fleet(2, mean_tasks=20.0, beta=0.01)
    found = evaluated(TakingTurns(), setting, FleetEpisodes.at(setting, 50.0), logs=True)
    assert 0.5 < found.offloaded < 1


def test_greedy_is_the_optimum_of_one_device():
    setting = fleet(1, mean_tasks=5.0, faster=20.0)
    episodes = FleetEpisodes.drawn(setting, 5, 5)
    best = evaluated(enumerated_optimum(setting, episodes, powers=17), setting, episodes).costs
    assert evaluated(GreedyFleet(), setting, episodes).costs == pytest.approx(best, rel=0.01)


@pytest.mark.slow
def test_the_search_finds_about_the_enumerated_optimum():
    setting = fleet(2, mean_tasks=20.0)
    episodes = FleetEpisodes.at(setting, 50.0)
    best = evaluated(enumerated_optimum(setting, episodes, powers=9), setting, episodes).costs
    assert evaluated(searched_actions(setting, episodes), setting, episodes).costs == pytest.approx(best, rel=0.1)


def test_more_than_two_devices_are_not_enumerated():
    with pytest.raises(ConfigError, match="devices=3: all actions of two are tried at most; use searched_actions"):
        enumerated_optimum(fleet(3), FleetEpisodes.at(fleet(3), 50.0))


@pytest.mark.shows
def test_ppo_learns_the_optimum_of_one_device_at_one_place():
    setting = fleet(1, mean_tasks=20.0, slot_seconds=0.1, nearest=50.0, farthest=50.0, faster=20.0)
    episodes = FleetEpisodes.at(setting, 50.0)
    policy = train_fleet_policy(setting, options=PpoOptions(slots=8192, copies=64, batch=128))
    best = evaluated(enumerated_optimum(setting, episodes), setting, episodes).costs
    assert evaluated(policy, setting, episodes).costs <= 1.05 * best


@pytest.mark.shows
@pytest.mark.parametrize(("devices", "slots"), [(1, 40_960), (2, 81_920)])
def test_ppo_comes_within_5_percent_of_the_enumerated_optimum(devices, slots):
    setting = fleet(devices, faster=20.0, down=10.0)
    episodes = FleetEpisodes.drawn(setting, 8, 1234)
    policy = train_fleet_policy(setting, options=PpoOptions(slots=slots))
    best = evaluated(enumerated_optimum(setting, episodes), setting, episodes).costs
    assert evaluated(policy, setting, episodes).costs.mean() <= 1.05 * best.mean()
