"""Runs a fleet's rule in front of real devices and a real edge: who divides where, and who may ask."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.many_devices.fleet_rule import FleetRule
from fsl.inference.many_devices.fleet_setting import FleetSetting, FleetView
from fsl.inference.planning import LinkState, SplitChoice, SplitPolicy
from fsl.inference.split_points import OUTPUT

_SOON = 0.001  # seconds


@checks_types()
@dataclass(frozen=True)
class DeviceSituation:
    """What a device tells of itself: metres to the edge, tasks without an answer, and what is left of the present one.

    ConfigError for what cannot be.
    """

    metres: float
    tasks: int = 1
    head_seconds: float = 0.0
    up_bits: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.metres < math.inf:
            raise ConfigError(f"metres={self.metres}: it must be above 0 and finite")
        for name in ("tasks", "head_seconds", "up_bits"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be a finite number of at least 0")


@dataclass(frozen=True)
class Allotment:
    """What a device does in a slot: where it divides, in which channel, and with how many watts it sends."""

    choice: SplitChoice
    channel: int
    watts: float


class FleetController:
    """Asks a rule once a slot what all devices do, and tells each; at the edge it is the admission of questions.

    `names` of the devices, as their tokens have them, in the order of the setting's devices. Devices report with
    `report`, and are at `setting.farthest` with no tasks until then. A device that was told "output" has no turn at the
    edge, except for what it began in the slot before. Channel and power are for the device's radio: no socket sets
    them. Any thread may ask. ConfigError for names that do not fit the setting or that it does not know, and for a
    policy that was trained for another fleet.
    """

    @checks_types(leave=("rule",))
    def __init__(
        self,
        rule: FleetRule,
        setting: FleetSetting,
        names: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        if len(names) != setting.devices or len(set(names)) < len(names):
            raise ConfigError(f"names: {', '.join(names) or 'none'}; give each of {setting.devices} devices its own")
        rule.check(setting)
        self.setting, self.names = setting, tuple(names)
        self._rule, self._clock, self._lock = rule, clock, threading.Lock()
        self._reports = {name: DeviceSituation(setting.farthest, 0) for name in names}
        self._backlog = 0.0
        self._until = -math.inf
        self._allotments: dict[str, Allotment] = {}
        self._sent_before: set[str] = set()

    def report(self, name: str, report: DeviceSituation) -> None:
        """Take what a device tells of itself, for the slots that begin from now on."""
        self._known(name)
        with self._lock:
            self._reports[name] = report

    def report_backlog(self, seconds: float) -> None:
        """Take how many seconds of work wait at the edge."""
        if not 0 <= seconds < math.inf:
            raise ConfigError(f"seconds={seconds}: it must be a finite number of at least 0")
        with self._lock:
            self._backlog = seconds

    def allotment(self, name: str) -> Allotment:
        """Returns what a device does in the present slot."""
        self._known(name)
        with self._lock:
            if self._clock() >= self._until:
                self._allot()
            return self._allotments[name]

    def refused_seconds(self, name: str, point: str) -> float:
        """Returns 0 where a device has its turn at the edge; else the seconds until the next slot."""
        if name not in self._reports:
            return self.setting.slot_seconds
        sends = self.allotment(name).choice.point != OUTPUT
        with self._lock:
            return 0.0 if sends or name in self._sent_before else max(self._until - self._clock(), _SOON)

    def policy(self, name: str) -> SplitPolicy:
        """Returns what a device's `InferenceDevice` asks where to divide."""
        self._known(name)
        return _AllottedSplit(self, name)

    def _known(self, name: str) -> None:
        if name not in self._reports:
            raise ConfigError(f"device {name!r}: this fleet has {', '.join(self.names)}")

    def _allot(self) -> None:
        reports = [self._reports[name] for name in self.names]
        tasks, heads, bits, metres = (
            np.array([[getattr(one, column) for one in reports]])
            for column in ("tasks", "head_seconds", "up_bits", "metres")
        )
        view = FleetView(tasks, heads, bits, metres, np.array([self._backlog]))
        told = self._rule.actions(self.setting, view)
        told.check(self.setting, 1)
        self._sent_before = {name for name, one in self._allotments.items() if one.choice.point != OUTPUT}
        for number, name in enumerate(self.names):
            choice = self.setting.table.choices[int(told.points[0, number])]
            self._allotments[name] = Allotment(choice, int(told.channels[0, number]), float(told.watts[0, number]))
        self._until = self._clock() + self.setting.slot_seconds


class _AllottedSplit(SplitPolicy):
    """Divides as the fleet's controller says."""

    def __init__(self, controller: FleetController, name: str):
        self._controller, self._device = controller, name
        self.name = f"as the fleet says {name}"

    def choose(self, state: LinkState, now: float) -> SplitChoice:
        """Returns the device's choice of the present slot."""
        return self._controller.allotment(self._device).choice
