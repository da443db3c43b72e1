"""The environment is what libraries of reinforcement learning expect of one with many agents."""

import numpy as np
import pytest

from fsl.errors import ConfigError
from fsl.inference.many_devices import FleetEnvironment
from tests.helpers.fleets import fleet

LOCAL = {"point": 5, "channel": 0, "power": 1.0}


def test_an_episode_of_local_tasks_is_worth_about_minus_1():
    environment = FleetEnvironment(fleet(2, mean_tasks=100.0), seed=3)
    environment.reset()
    total, answered = 0.0, 0
    while environment.agents:
        _, rewards, terminated, truncated, infos = environment.step(dict.fromkeys(environment.agents, LOCAL))
        total += rewards["device_0"]
        answered += sum(info["answered"] for info in infos.values())
    assert terminated == {"device_0": True, "device_1": True}
    assert not any(truncated.values())
    assert total == pytest.approx(-answered / 200, rel=1e-5)


def test_an_episode_that_is_broken_off_is_truncated_and_not_terminated():
    environment = FleetEnvironment(fleet(2, most_slots=2))
    environment.reset()
    environment.step(dict.fromkeys(environment.agents, LOCAL))
    _, _, terminated, truncated, _ = environment.step(dict.fromkeys(environment.agents, LOCAL))
    assert (set(terminated.values()), set(truncated.values())) == ({False}, {True})
    with pytest.raises(ConfigError, match="the episode is over; call reset first"):
        environment.step({})


def test_a_seed_gives_the_same_episode_again():
    environment = FleetEnvironment(fleet(2))
    one, other, again = (environment.reset(seed)[0]["device_1"] for seed in (5, None, 5))
    assert (one == again).all()
    assert (one != other).any()


def test_spaces_hold_what_is_observed_and_every_sampled_action_can_be_taken():
    pytest.importorskip("gymnasium")
    environment = FleetEnvironment(fleet(3, 2, faster=5.0))
    observed, _ = environment.reset(0)
    for _ in range(5):
        for agent in environment.agents:
            assert environment.observation_space(agent).contains(observed[agent])
            assert environment.action_space(agent) is environment.action_space(agent)
        spaces = {agent: environment.action_space(agent) for agent in environment.agents}
        observed, *_ = environment.step({agent: space.sample() for agent, space in spaces.items()})


@pytest.mark.parametrize(
    ("actions", "line"),
    [
        ({"device_0": LOCAL}, "there is none for device_1; give each of device_0, device_1 one"),
        ({"device_0": LOCAL, "device_1": {"point": 1}}, "actions of device_1: point; give point, channel and power"),
        ({"device_0": LOCAL, "device_1": {**LOCAL, "power": 2.0}}, "power=2.0 of device_1: it is a share from 0 to 1"),
    ],
)
def test_an_action_that_cannot_be_is_refused(actions, line):
    environment = FleetEnvironment(fleet(2))
    environment.reset()
    with pytest.raises(ConfigError, match=line):
        environment.step(actions)


def test_an_agent_observes_its_distance_on_a_scale_of_ratios():
    environment = FleetEnvironment(fleet(1, nearest=1.0, farthest=100.0))
    observed, _ = environment.reset()
    metres = 100.0 ** float(observed["device_0"][3])
    assert 1 <= metres <= 100
    assert np.isfinite(observed["device_0"]).all()
