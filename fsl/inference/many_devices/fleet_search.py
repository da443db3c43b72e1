"""The best fixed actions for a fleet, found by trying them in the simulation: what policies are measured against."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.many_devices.fleet_baselines import GreedyInTurn, powers_of
from fsl.inference.many_devices.fleet_evaluation import FleetEpisodes
from fsl.inference.many_devices.fleet_rule import FleetRule
from fsl.inference.many_devices.fleet_setting import FleetActions, FleetSetting, FleetView
from fsl.inference.many_devices.fleet_simulation import FleetSimulation

_FEW_TASKS = 20  # in the mean, of a first look at many actions
_SHORT_LIST = 48
_MOST_JOINT = 50_000  # actions of all devices together that are tried
_TOO_SLOW = 20.0  # times as long as local: such an action is not the best


@dataclass(frozen=True)
class FixedFleet(FleetRule):
    """Devices do the same in all slots; `told` has a row for each episode, in which devices may differ."""

    told: FleetActions
    name: str = "fixed"

    def actions(self, setting: FleetSetting, view: FleetView) -> FleetActions:
        """Returns the actions."""
        return self.told


@checks_types()
def enumerated_optimum(setting: FleetSetting, episodes: FleetEpisodes, *, powers: int = 13) -> FixedFleet:
    """Returns the best fixed actions of one or two devices in each episode: all of them are tried.

    Each device may take every point but "output" in every channel with each of so many powers, or compute locally.
    Channels are alike, so that the first device takes the first one. All are tried with a share of the tasks, and the
    best of them with all; then powers between are tried around the best. ConfigError for more devices.
    """
    if setting.devices > 2:
        raise ConfigError(f"devices={setting.devices}: all actions of two are tried at most; use searched_actions")
    single = _actions_of_one(setting, powers)
    first = [one for one in single if one[1] == 0]
    joint = list(itertools.product(*(first, single)[: setting.devices]))
    if len(joint) > _MOST_JOINT:
        raise ConfigError(f"powers={powers}: they make {len(joint)} actions, and {_MOST_JOINT} are tried at most")
    told = [_best_of(setting, _episode(episodes, row), _joint(joint)) for row in range(len(episodes.metres))]
    told = [_refined(setting, _episode(episodes, row), one, powers) for row, one in enumerate(told)]
    return FixedFleet(_stacked(told), "enumerated optimum")


@checks_types()
def searched_actions(setting: FleetSetting, episodes: FleetEpisodes, *, powers: int = 9, sweeps: int = 3) -> FixedFleet:
    """Returns good fixed actions of any number of devices in each episode: one device after the other is improved.

    It starts from `GreedyInTurn` and from all local, tries all actions of one device while the others keep theirs, by
    what all tasks cost together, and stops where none improves. There may be better ones that differ in two devices.
    """
    single = _actions_of_one(setting, powers)
    told = [_descended(setting, _episode(episodes, row), single, sweeps) for row in range(len(episodes.metres))]
    return FixedFleet(_stacked(told), "searched")


def fixed_costs(setting: FleetSetting, metres: np.ndarray, tasks: np.ndarray, told: FleetActions) -> np.ndarray:
    """Returns the mean cost of a task for each row of actions (n, devices); infinity where it takes far too long.

    `metres` and `tasks`: of one episode, (devices,).
    """
    longest = _TOO_SLOW * float(tasks.max()) * setting.table.head_seconds[-1]
    slots = math.ceil(longest / setting.slot_seconds)
    count = len(told.points)
    simulation = FleetSimulation(replace(setting, most_slots=slots), count, 0)
    simulation.place(metres[None], tasks[None])
    costs = np.zeros(count)
    while True:
        result = simulation.step(told)
        costs += setting.costs(result.seconds, result.joules).sum(axis=1)
        if result.truncated.any() or result.terminated.all():
            return np.where(result.terminated, costs / tasks.sum(), math.inf)


_One = tuple[int, int, float]  # point, channel and watts of a device


def _actions_of_one(setting: FleetSetting, powers: int) -> list[_One]:
    watts = powers_of(setting, powers).tolist()
    channels, points = range(setting.radio.channels), range(setting.table.local)
    return [(setting.table.local, 0, watts[-1]), *itertools.product(points, channels, watts)]


def _joint(actions: "list[tuple[_One, ...]]") -> FleetActions:
    points, channels, watts = (np.array([[one[k] for one in each] for each in actions]) for k in range(3))
    return FleetActions(points, channels, watts)


def _episode(episodes: FleetEpisodes, row: int) -> tuple[np.ndarray, np.ndarray]:
    return episodes.metres[row], episodes.tasks[row]


def _rows(told: FleetActions, rows: np.ndarray) -> FleetActions:
    return FleetActions(told.points[rows], told.channels[rows], told.watts[rows])


def _stacked(told: "list[FleetActions]") -> FleetActions:
    points, channels, watts = (
        np.concatenate([getattr(one, k) for one in told]) for k in ("points", "channels", "watts")
    )
    return FleetActions(points, channels, watts)


def _best_of(setting: FleetSetting, episode: tuple[np.ndarray, np.ndarray], told: FleetActions) -> FleetActions:
    """Returns the best of actions as one row: all with few tasks, the short list with all."""
    metres, tasks = episode
    few = np.maximum(1, np.round(tasks * min(1.0, _FEW_TASKS / tasks.mean()))).astype(tasks.dtype)
    best = _rows(told, np.argsort(fixed_costs(setting, metres, few, told), kind="stable")[:_SHORT_LIST])
    costs = fixed_costs(setting, metres, tasks, best)
    return _rows(best, np.array([costs.argmin()]))


def _refined(
    setting: FleetSetting, episode: tuple[np.ndarray, np.ndarray], told: FleetActions, powers: int
) -> FleetActions:
    """Returns a row with powers that lie between those that were tried."""
    radio = setting.radio
    step = (radio.most_watts / radio.least_watts) ** (1 / max(powers - 1, 1))
    for _ in range(3):
        step = step**0.5
        factors = np.array(
            list(itertools.product((1 / step, step**-0.5, 1.0, step**0.5, step), repeat=setting.devices))
        )
        watts = np.clip(told.watts * factors, radio.least_watts, radio.most_watts)
        near = FleetActions(
            np.repeat(told.points, len(watts), axis=0), np.repeat(told.channels, len(watts), axis=0), watts
        )
        costs = fixed_costs(setting, *episode, near)
        told = _rows(near, np.array([costs.argmin()]))
    return told


def _descended(
    setting: FleetSetting, episode: tuple[np.ndarray, np.ndarray], single: "list[_One]", sweeps: int
) -> FleetActions:
    metres, tasks = episode
    few = np.maximum(1, np.round(tasks * min(1.0, _FEW_TASKS / tasks.mean()))).astype(tasks.dtype)
    view = FleetView(tasks[None], np.zeros((1, len(tasks))), np.zeros((1, len(tasks))), metres[None], np.zeros(1))
    greedy = GreedyInTurn().actions(setting, view)
    local = _joint([((setting.table.local, 0, setting.radio.most_watts),) * setting.devices])
    ends = [_improved(setting, metres, few, start, single, sweeps) for start in (greedy, local)]
    both = _stacked(ends)
    return _rows(both, np.array([fixed_costs(setting, metres, tasks, both).argmin()]))


def _improved(
    setting: FleetSetting, metres: np.ndarray, tasks: np.ndarray, told: FleetActions, single: "list[_One]", sweeps: int
) -> FleetActions:
    least = float(fixed_costs(setting, metres, tasks, told)[0])
    for _ in range(sweeps):
        before = least
        for device in range(setting.devices):
            tried = _rows(told, np.zeros(len(single), dtype=int))
            tried.points[:, device], tried.channels[:, device], tried.watts[:, device] = map(np.array, zip(*single))
            costs = fixed_costs(setting, metres, tasks, tried)
            if costs.min() < least:
                least, told = float(costs.min()), _rows(tried, np.array([costs.argmin()]))
        if least == before:
            break
    return told
