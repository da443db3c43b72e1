"""What a fleet is: devices with tasks, one edge, and the radio between them."""

import math
from dataclasses import dataclass, field

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.many_devices.point_table import PointTable
from fsl.inference.many_devices.radio_cell import RadioCell


@checks_types()
@dataclass(frozen=True, kw_only=True)
class FleetSetting:
    """Devices that share an edge and its radio; defaults are the paper's (Hao et al. 2022, released code).

    Each episode puts every device anywhere from `nearest` to `farthest` metres, and gives it Poisson(`mean_tasks`)
    tasks, one at least. A device has one task at a time, from its head to its answer. In each slot of `slot_seconds`
    it is told (point, channel, watts) for the tasks that it begins. A task costs seconds + `beta` joules.
    `waiting_watts`: what a device draws as it waits for the edge. An episode is broken off after `most_slots`.
    """

    table: PointTable
    devices: int = 5
    radio: RadioCell = field(default_factory=RadioCell)
    slot_seconds: float = 0.5
    beta: float = 1.0
    mean_tasks: float = 200.0
    nearest: float = 1.0
    farthest: float = 100.0
    waiting_watts: float = 0.0
    most_slots: int = 64

    def __post_init__(self) -> None:
        if self.devices < 1 or self.most_slots < 1:
            raise ConfigError(f"devices={self.devices}, most_slots={self.most_slots}: each must be at least 1")
        if self.radio.channels > self.devices:
            raise ConfigError(
                f"channels={self.radio.channels}: {self.devices} devices can use {self.devices} at most; give fewer"
            )
        for name in ("slot_seconds", "mean_tasks"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be above 0 and finite")
        for name in ("beta", "waiting_watts"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be a finite number of at least 0")
        if not 0 < self.nearest <= self.farthest < math.inf:
            raise ConfigError(f"nearest={self.nearest}, farthest={self.farthest}: metres above 0, the nearest first")

    @property
    def points(self) -> int:
        """How many choices a device has."""
        return len(self.table.choices)

    @property
    def observed(self) -> int:
        """How many numbers describe a moment: four for each device, and the edge's backlog."""
        return 4 * self.devices + 1

    def costs(self, seconds: np.ndarray, joules: np.ndarray) -> np.ndarray:
        """Returns seconds + beta joules."""
        return seconds + self.beta * joules


@dataclass(frozen=True)
class FleetView:
    """A moment of so many copies: arrays (copies, devices), and `backlog` (copies,) of the edge in seconds.

    `tasks` without an answer, `head_seconds` and `up_bits` that are left of the present ones, `metres` to the edge.
    """

    tasks: np.ndarray
    head_seconds: np.ndarray
    up_bits: np.ndarray
    metres: np.ndarray
    backlog: np.ndarray

    def numbers(self, setting: FleetSetting) -> np.ndarray:
        """Returns what a policy sees (copies, 4 devices + 1), float32, each about from 0 to 1."""
        table, span = setting.table, max(math.log(setting.farthest / setting.nearest), 1e-9)
        parts = (
            self.tasks / setting.mean_tasks,
            self.head_seconds / table.head_seconds[-1],
            self.up_bits / max(table.up_bits),
            np.log(self.metres / setting.nearest) / span,
        )
        by_device = np.stack(parts, axis=2).reshape(len(self.backlog), -1)
        edge = self.backlog[:, None] / table.head_seconds[-1]
        return np.concatenate([by_device, edge], axis=1).astype(np.float32)


@dataclass(frozen=True)
class FleetActions:
    """What devices are told: `points` and `channels` as indices, and `watts`; arrays (copies, devices)."""

    points: np.ndarray
    channels: np.ndarray
    watts: np.ndarray

    def check(self, setting: FleetSetting, copies: int) -> None:
        """Raise ConfigError for what no device can do."""
        for name in ("points", "channels", "watts"):
            if getattr(self, name).shape != (copies, setting.devices):
                raise ConfigError(
                    f"{name} has shape {getattr(self, name).shape}; {setting.devices} devices in {copies} copies need "
                    f"{(copies, setting.devices)}"
                )
        for name, most in (("points", setting.points), ("channels", setting.radio.channels)):
            values = getattr(self, name)
            if not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() >= most:
                raise ConfigError(f"{name}: give whole numbers from 0 to {most - 1}")
        setting.radio.check_watts(self.watts)
