"""Simulates a fleet from event to event, many copies of it at once."""

from dataclasses import dataclass

import numpy as np

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.many_devices.edge_queue import EdgeQueue
from fsl.inference.many_devices.fleet_setting import FleetActions, FleetSetting, FleetView
from fsl.inference.many_devices.task_log import TaskRecords

_IDLE, _HEAD, _UPLOAD, _AWAY = range(4)


@dataclass(frozen=True)
class SlotResult:
    """What a slot came to: arrays (copies, devices), and of whole copies (copies,).

    `seconds` in which each device had a task, its `joules`, and how many tasks were `answered`. `terminated`: all tasks
    of the copy are answered; `truncated`: it was broken off before.
    """

    seconds: np.ndarray
    joules: np.ndarray
    answered: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class FleetSimulation:
    """Copies of a fleet, each of which goes from event to event in a clock of its own; arrays, and no object a task.

    An event is the end of a phase of some device's task. Between two events rates are constant, and change with who
    sends in a channel. Each episode's distances and tasks are drawn from (seed, copy, episode). `logs`: keep a record
    of each task.
    """

    @checks_types()
    def __init__(self, setting: FleetSetting, copies: int, seed: int, *, logs: bool = False):
        if copies < 1:
            raise ConfigError(f"copies={copies}: give at least 1")
        self.setting, self.copies, self._seed = setting, copies, seed
        shape, table = (copies, setting.devices), setting.table
        self._heads, self._head_joules = np.array(table.head_seconds), np.array(table.head_joules)
        self._head_watts = self._head_joules / np.maximum(self._heads, 1e-300)
        self._bits, self._tails = np.array(table.up_bits), np.array(table.tail_seconds)
        self._downs = np.array(table.down_bits) / (setting.radio.down_mbit * 1e6)
        self._others = ~np.eye(setting.devices, dtype=bool)
        self.queue = EdgeQueue(copies)
        self.tasks, self.metres = np.zeros(shape, dtype=np.int64), np.ones(shape)
        self._gains, self._signals = np.ones(shape), np.zeros(shape)
        self._same = np.zeros((*shape, setting.devices))
        self._phase, self._points, self._channels = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        self._left, self._draws, self._watts = (np.zeros(shape) for _ in range(3))
        self._begun, self._computed, self._sent, self._waits = (np.zeros(shape) for _ in range(4))
        self._clock, self._slots, self._episodes = np.zeros(copies), np.zeros(copies, int), np.zeros(copies, int)
        self._answered = np.zeros(shape)
        self._told: FleetActions | None = None
        self._log: list[TaskRecords] | None = [] if logs else None
        self.restart(np.arange(copies))

    def restart(self, copies: np.ndarray) -> None:
        """Begin a new episode in the copies of these indices."""
        setting = self.setting
        for copy in copies.tolist():
            draws = seeds.numpy_generator(self._seed, "fleet", device=copy, round=int(self._episodes[copy]))
            self.metres[copy] = draws.uniform(setting.nearest, setting.farthest, setting.devices)
            self.tasks[copy] = np.maximum(draws.poisson(setting.mean_tasks, setting.devices), 1)
        self._episodes[copies] += 1
        self._put(copies)

    def place(self, metres: np.ndarray, tasks: np.ndarray) -> None:
        """Begin an episode in every copy, with these distances and tasks (copies, devices)."""
        shape = (self.copies, self.setting.devices)
        self.metres, self.tasks = np.broadcast_to(metres, shape).astype(float), np.broadcast_to(tasks, shape).copy()
        if not (self.metres > 0).all() or not (self.tasks > 0).all():
            raise ConfigError("metres and tasks: all must be above 0")
        self._put(np.arange(self.copies))

    def _put(self, copies: np.ndarray) -> None:
        self._gains[copies] = self.setting.radio.gains(self.metres[copies])
        self._phase[copies], self._left[copies], self._draws[copies] = _IDLE, np.inf, 0.0
        self._clock[copies], self._slots[copies] = 0.0, 0
        self.queue.clear(copies)

    @property
    def view(self) -> FleetView:
        """What can be known at this moment."""
        heads = np.where(self._phase == _HEAD, self._left, 0.0)
        bits = np.where(self._phase == _UPLOAD, self._left, 0.0)
        bits = np.where(self._phase == _HEAD, self._bits[self._points], bits)
        return FleetView(self.tasks.copy(), heads, bits, self.metres.copy(), self.queue.backlog.copy())

    @property
    def records(self) -> TaskRecords:
        """The tasks answered so far; ConfigError where no log was asked for."""
        if not self._log:
            raise ConfigError("logs=False, or no task is answered yet: there are no records")
        return TaskRecords.joined(self._log)

    def step(self, actions: FleetActions) -> SlotResult:
        """Let a slot pass; `actions` count for the tasks that are begun in it."""
        actions.check(self.setting, self.copies)
        shape, self._told = (self.copies, self.setting.devices), actions
        seconds, joules, self._answered = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._begin(*np.nonzero((self._phase == _IDLE) & (self.tasks > 0)))
        left = np.full(self.copies, self.setting.slot_seconds)
        while left.any():
            speed = np.where(self._phase == _UPLOAD, self._rates(), 1.0)
            until = self._left / speed
            span = np.minimum(np.maximum(until.min(axis=1), 0.0), left)
            passed = span[:, None]
            self._left -= passed * speed
            seconds += passed * (self._phase != _IDLE)
            joules += passed * self._draws
            self._clock += span
            left -= span
            self.queue.work(span)
            copies, devices = np.nonzero(until <= passed)
            if len(copies):
                self._go_on(copies, devices)
        self._slots += 1
        terminated = (self.tasks == 0).all(axis=1)
        truncated = ~terminated & (self._slots >= self.setting.most_slots)
        return SlotResult(seconds, joules, self._answered, terminated, truncated)

    def _rates(self) -> np.ndarray:
        """Returns bits per second of whoever sends; 0 of others."""
        signals = self._signals * (self._phase == _UPLOAD)
        return self.setting.radio.rates(signals, np.einsum("cij,cj->ci", self._same, signals))

    def _go_on(self, copies: np.ndarray, devices: np.ndarray) -> None:
        """Take tasks whose phase is over to the next one."""
        phase, points = self._phase[copies, devices], self._points[copies, devices]
        local = points == self.setting.table.local
        answered = (phase == _AWAY) | ((phase == _HEAD) & local)
        if (send := (phase == _HEAD) & ~local).any():
            at = copies[send], devices[send]
            self._phase[at], self._left[at] = _UPLOAD, self._bits[points[send]]
            self._draws[at], self._computed[at] = self._watts[at], self._clock[copies[send]]
        if (sent := phase == _UPLOAD).any():
            at, tails = (copies[sent], devices[sent]), self._tails[points[sent]]
            waits = self.queue.arrive(copies[sent], tails)
            away = waits + tails + self._downs[points[sent]]
            self._phase[at], self._left[at], self._draws[at] = _AWAY, away, self.setting.waiting_watts
            self._waits[at], self._sent[at] = waits, self._clock[copies[sent]]
            answered[sent] = away == 0
        if answered.any():
            self._answer(copies[answered], devices[answered])

    def _answer(self, copies: np.ndarray, devices: np.ndarray) -> None:
        at = copies, devices
        if self._log is not None:
            self._log.append(self._recorded(copies, devices))
        self.tasks[at] -= 1
        self._answered[at] += 1
        more = self.tasks[at] > 0
        done = copies[~more], devices[~more]
        self._phase[done], self._left[done], self._draws[done] = _IDLE, np.inf, 0.0
        self._begin(copies[more], devices[more])

    def _begin(self, copies: np.ndarray, devices: np.ndarray) -> None:
        """Begin a device's next task as it was told."""
        if not len(copies) or (told := self._told) is None:
            return
        at = copies, devices
        points, watts = told.points[at], told.watts[at]
        heads = self._heads[points]
        computes = heads > 0
        self._points[at], self._channels[at], self._watts[at] = points, told.channels[at], watts
        self._signals[at] = watts * self._gains[at]
        channels = self._channels[copies]
        self._same[copies] = (channels[:, :, None] == channels[:, None, :]) & self._others
        self._phase[at] = np.where(computes, _HEAD, _UPLOAD)
        self._left[at] = np.where(computes, heads, self._bits[points])
        self._draws[at] = np.where(computes, self._head_watts[points], watts)
        self._begun[at] = self._computed[at] = self._clock[copies]

    def _recorded(self, copies: np.ndarray, devices: np.ndarray) -> TaskRecords:
        at, now = (copies, devices), self._clock[copies]
        points, begun = self._points[at], self._begun[at]
        local = points == self.setting.table.local
        computed = np.where(local, now, self._computed[at])
        sent = np.where(local, now, self._sent[at])
        radio, waiting = self._watts[at] * (sent - computed), self.setting.waiting_watts * (now - sent)
        return TaskRecords(
            copies=copies,
            devices=devices,
            points=points,
            begun=begun,
            head=self._heads[points],
            upload=sent - computed,
            queue=np.where(local, 0.0, self._waits[at]),
            tail=self._tails[points],
            down=self._downs[points],
            ended=now,
            joules=self._head_joules[points] + radio + waiting,
        )
