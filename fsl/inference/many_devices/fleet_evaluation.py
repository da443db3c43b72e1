"""What a rule comes to: seconds, joules and cost of a fleet's tasks."""

from dataclasses import dataclass, replace

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, RunError
from fsl.inference.many_devices.fleet_rule import FleetRule
from fsl.inference.many_devices.fleet_setting import FleetSetting
from fsl.inference.many_devices.fleet_simulation import FleetSimulation

_MOST_SLOTS = 1_000_000


@dataclass(frozen=True)
class FleetEpisodes:
    """Where devices are and how many tasks they have, in each episode: (episodes, devices).

    Every rule meets the same ones.
    """

    metres: np.ndarray
    tasks: np.ndarray

    @staticmethod
    def drawn(setting: FleetSetting, episodes: int, seed: int) -> "FleetEpisodes":
        """Draw episodes as training does, from another seed's draws."""
        simulation = FleetSimulation(setting, episodes, seed)
        return FleetEpisodes(simulation.metres, simulation.tasks)

    @staticmethod
    def at(setting: FleetSetting, metres: float) -> "FleetEpisodes":
        """Returns the one episode in which all are so far away, with the mean number of tasks."""
        shape, tasks = (1, setting.devices), max(1, round(setting.mean_tasks))
        return FleetEpisodes(np.full(shape, metres), np.full(shape, tasks))


@dataclass(frozen=True)
class FleetResult:
    """What a rule came to. `seconds`, `joules` and `costs`: of a task, mean of each episode, (episodes,).

    `slowest`: seconds of a task of the device that takes longest for its own. Where tasks were logged, and else None:
    `p95`, seconds within which 95% of all were answered, the `longest`, and the share that was `offloaded`.
    """

    rule: str
    seconds: np.ndarray
    joules: np.ndarray
    costs: np.ndarray
    slowest: np.ndarray
    p95: float | None = None
    longest: float | None = None
    offloaded: float | None = None


@checks_types(leave=("rule",))
def evaluated(rule: FleetRule, setting: FleetSetting, episodes: FleetEpisodes, *, logs: bool = False) -> FleetResult:
    """Run a rule until all tasks of all episodes are answered; `logs`: keep each task, for `p95` and `offloaded`."""
    if episodes.metres.shape != episodes.tasks.shape or episodes.metres.shape[1:] != (setting.devices,):
        raise ConfigError(f"episodes: of {episodes.metres.shape[-1]} devices; the setting has {setting.devices}")
    setting = replace(setting, most_slots=_MOST_SLOTS)
    copies = len(episodes.metres)
    simulation = FleetSimulation(setting, copies, 0, logs=logs)
    simulation.place(episodes.metres, episodes.tasks)
    seconds, joules = np.zeros(episodes.metres.shape), np.zeros(copies)
    while True:
        result = simulation.step(rule.actions(setting, simulation.view))
        seconds += result.seconds
        joules += result.joules.sum(axis=1)
        if result.terminated.all():
            break
        if result.truncated.any():
            raise RunError(f"{rule.name}: tasks are left after {_MOST_SLOTS} slots; nobody can send so slowly")
    count = episodes.tasks.sum(axis=1)
    slowest = (seconds / episodes.tasks).max(axis=1)
    seconds, joules = seconds.sum(axis=1) / count, joules / count
    p95 = longest = offloaded = None
    if logs:
        records = simulation.records
        p95, longest = float(np.percentile(records.seconds, 95)), float(records.seconds.max())
        offloaded = float((records.points != setting.table.local).mean())
    return FleetResult(rule.name, seconds, joules, setting.costs(seconds, joules), slowest, p95, longest, offloaded)
