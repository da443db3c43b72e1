"""A fleet as an environment of many agents, as libraries of reinforcement learning take it."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.many_devices.fleet_rewards import rewards
from fsl.inference.many_devices.fleet_setting import FleetActions, FleetSetting
from fsl.inference.many_devices.fleet_simulation import FleetSimulation

Observations = dict[str, np.ndarray]
DeviceAction = Mapping[str, Any]


class FleetEnvironment:
    """One fleet with an agent for each device, in PettingZoo's parallel form: dictionaries by agent.

    An agent observes what all do: tasks, compute seconds, bits and (log) distance of each device, and the edge's
    backlog; (4 devices + 1,) float32. Its action is {"point": int, "channel": int, "power": share from 0 to 1}, where
    equal steps of the share are equal ratios from the least to the most watts. All have one reward, that of
    `train_fleet_policy`. An episode is terminated when all tasks are answered, and truncated after `most_slots`.

    Spaces are gymnasium's (pip install 'fsl-flower[rl]'); nothing else needs it.
    """

    @checks_types()
    def __init__(self, setting: FleetSetting, *, seed: int = 0):
        self.setting, self._seed = setting, seed
        self.metadata = {"name": "fsl_fleet", "is_parallelizable": True}
        self.render_mode = None
        self.possible_agents = [f"device_{number}" for number in range(setting.devices)]
        self.agents: list[str] = []
        self._simulation = FleetSimulation(setting, 1, seed)

    @property
    def unwrapped(self) -> "FleetEnvironment":
        """Itself: nothing is wrapped."""
        return self

    def reset(
        self, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observations, dict[str, dict[str, Any]]]:
        """Begin an episode, of a seed if one is given, and else the next one; returns observations and infos."""
        if seed is not None:
            self._simulation = FleetSimulation(self.setting, 1, seed)
        else:
            self._simulation.restart(np.array([0]))
        self.agents = [*self.possible_agents]
        return self._observations(), {agent: {} for agent in self.agents}

    def step(
        self, actions: Mapping[str, DeviceAction]
    ) -> tuple[Observations, dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Let a slot pass; returns observations, rewards, terminations, truncations and infos.

        Infos have the slot's seconds, joules and answered tasks of each device. ConfigError for an agent that has no
        action, and for one that it cannot take.
        """
        if not self.agents:
            raise ConfigError("the episode is over; call reset first")
        told = self._told(actions)
        result = self._simulation.step(told)
        reward = float(rewards(self.setting, result)[0])
        terminated, truncated = bool(result.terminated[0]), bool(result.truncated[0])
        agents, observed = self.agents, self._observations()
        infos = {
            agent: {
                "seconds": float(result.seconds[0, number]),
                "joules": float(result.joules[0, number]),
                "answered": int(result.answered[0, number]),
            }
            for number, agent in enumerate(agents)
        }
        if terminated or truncated:
            self.agents = []
        return (
            observed,
            dict.fromkeys(agents, reward),
            dict.fromkeys(agents, terminated),
            dict.fromkeys(agents, truncated),
            infos,
        )

    def observation_space(self, agent: str) -> Any:
        """Returns gymnasium's space of what an agent observes; the same object each time."""
        return self._spaces[agent][0]

    def action_space(self, agent: str) -> Any:
        """Returns gymnasium's space of what an agent may do; the same object each time."""
        return self._spaces[agent][1]

    @cached_property
    def _spaces(self) -> dict[str, tuple[Any, Any]]:
        spaces, setting = _gymnasium_spaces(), self.setting

        def of_one() -> tuple[Any, Any]:
            observed = spaces.Box(0.0, np.inf, (setting.observed,), np.float32)
            point, channel = spaces.Discrete(setting.points), spaces.Discrete(setting.radio.channels)
            power = spaces.Box(0.0, 1.0, (), np.float32)
            return observed, spaces.Dict({"point": point, "channel": channel, "power": power})

        return {agent: of_one() for agent in self.possible_agents}

    def render(self) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Holds nothing open."""

    def _observations(self) -> Observations:
        numbers = self._simulation.view.numbers(self.setting)[0]
        return {agent: numbers.copy() for agent in self.agents}

    def _told(self, actions: Mapping[str, DeviceAction]) -> FleetActions:
        if missing := [agent for agent in self.agents if agent not in actions]:
            raise ConfigError(f"actions: there is none for {missing[0]}; give each of {', '.join(self.agents)} one")
        given = [actions[agent] for agent in self.agents]
        for agent, action in zip(self.agents, given):
            if {"point", "channel", "power"} - {*action}:
                raise ConfigError(f"actions of {agent}: {', '.join(action)}; give point, channel and power")
            if not 0 <= float(action["power"]) <= 1:
                raise ConfigError(f"power={action['power']} of {agent}: it is a share from 0 to 1")
        points, channels = (np.array([[int(one[name]) for one in given]]) for name in ("point", "channel"))
        shares = np.array([[float(one["power"]) for one in given]])
        return FleetActions(points, channels, self.setting.radio.watts(shares))


def _gymnasium_spaces() -> Any:
    try:
        from gymnasium import spaces
    except ImportError:
        raise ConfigError("gymnasium is not installed, which has the spaces; pip install 'fsl-flower[rl]'") from None
    return spaces
