"""Rules that nobody trained: what a learned policy has to beat."""

from typing import Literal

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import one_of
from fsl.inference.many_devices.fleet_rule import FleetRule
from fsl.inference.many_devices.fleet_setting import FleetActions, FleetSetting, FleetView

ChannelRule = Literal["first", "round robin"]
_POWERS = 64  # of which a rule chooses


class LocalFleet(FleetRule):
    """Every device computes everything."""

    name = "local"

    def actions(self, setting: FleetSetting, view: FleetView) -> FleetActions:
        """Returns the local point for all."""
        return _alike(setting, view, setting.table.local)


class OffloadingFleet(FleetRule):
    """Every device sends its input at full power, and channels go round: device i has channel i modulo their number."""

    name = "full offload"

    def actions(self, setting: FleetSetting, view: FleetView) -> FleetActions:
        """Returns the input for all."""
        return _alike(setting, view, 0)


class GreedyFleet(FleetRule):
    """Each device takes the point and the power of least cost as if nobody else sent: greedy by the cost model.

    `channels`: the "first" for all, which are equally good to who thinks of nobody else, or "round robin".
    """

    @checks_types()
    def __init__(self, channels: ChannelRule = "first"):
        self.channels = one_of("channels", channels, ("first", "round robin"))
        self.name = "greedy" if channels == "first" else "greedy, round robin"

    def actions(self, setting: FleetSetting, view: FleetView) -> FleetActions:
        """Returns the best point and power of each device by itself."""
        alike = _alike(setting, view, 0)
        points, watts, _ = best_beside(setting, view.metres, np.zeros(view.metres.shape))
        channels = alike.channels if self.channels == "round robin" else np.zeros_like(alike.channels)
        return FleetActions(points, channels, watts)


class GreedyInTurn(FleetRule):
    """Devices choose one after the other, the nearest first, by the cost model beside those who chose before.

    Of others it counts the signal times the share of the time in which they send. Each thinks of itself alone. Whoever
    has no tasks left disturbs nobody.
    """

    name = "greedy in turn"

    def actions(self, setting: FleetSetting, view: FleetView) -> FleetActions:
        """Returns the best answer of each device to those before it."""
        alike, rows = _alike(setting, view, 0), np.arange(len(view.backlog))
        points, channels, watts = alike.points, alike.channels, alike.watts
        disturbing = np.zeros((len(rows), setting.radio.channels))
        for devices in np.argsort(view.metres, axis=1).T:
            metres, beside = view.metres[rows, devices], disturbing
            point, power, share = best_beside(setting, np.broadcast_to(metres[:, None], beside.shape), beside)
            costs = _cost_of(setting, metres, point, power, beside)
            channel = costs.argmin(axis=1)
            point, power, share = (each[rows, channel] for each in (point, power, share))
            points[rows, devices], channels[rows, devices], watts[rows, devices] = point, channel, power
            sends = (point != setting.table.local) & (view.tasks[rows, devices] > 0)
            disturbing[rows, channel] += sends * share * power * setting.radio.gains(metres)
        return FleetActions(points, channels, watts)


class TakingTurns(FleetRule):
    """As many devices send as there are channels, each as if alone; those with the least work left go first.

    The others keep still: they hold one task back by sending it so softly that the edge hears it at the level of the
    noise. Where that costs more than energy is worth, they compute locally meanwhile.
    """

    name = "taking turns"

    def actions(self, setting: FleetSetting, view: FleetView) -> FleetActions:
        """Returns whose turn it is, by tasks left and what each takes."""
        alone = np.zeros(view.metres.shape)
        points, watts, _ = best_beside(setting, view.metres, alone)
        heads, tails, bits, joules = _columns(setting)
        gains = setting.radio.gains(view.metres)
        sending = bits[points] / setting.radio.rates(gains * watts, alone)
        seconds = heads[points] + tails[points] + sending
        costs = setting.costs(seconds, joules[points] + watts * sending)
        left = np.where(view.tasks > 0, view.tasks * seconds, np.inf)
        place = left.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        turn = place < setting.radio.channels
        still = np.clip(setting.radio.noise_watts / gains, setting.radio.least_watts, setting.radio.most_watts)
        local = ~turn & (setting.beta * setting.table.head_joules[-1] < costs)
        points = np.where(local, setting.table.local, points)
        return FleetActions(points, place % setting.radio.channels, np.where(turn, watts, still))


def best_beside(
    setting: FleetSetting, metres: np.ndarray, disturbing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns points, watts and the share of time sent at least cost, beside `disturbing` watts; arrays of one shape.

    The edge's queue is empty for it.
    """
    powers = powers_of(setting, _POWERS)
    heads, tails, bits, joules = _columns(setting)
    signals = setting.radio.gains(metres)[..., None] * powers
    rates = setting.radio.rates(signals, np.broadcast_to(disturbing[..., None], signals.shape))
    sending = bits[:, None] / rates[..., None, :]  # (..., points, powers)
    seconds = heads[:, None] + tails[:, None] + sending
    spent = joules[:, None] + sending * powers + setting.waiting_watts * tails[:, None]
    costs = setting.costs(seconds, spent).reshape(*metres.shape, -1)
    at = costs.argmin(axis=-1)
    point, power = np.divmod(at, len(powers))
    share = np.take_along_axis((sending / seconds).reshape(costs.shape), at[..., None], axis=-1)[..., 0]
    return point, powers[power], share


def powers_of(setting: FleetSetting, count: int) -> np.ndarray:
    """Returns so many powers in equal ratios, from the least to the most."""
    return setting.radio.watts(np.linspace(0.0, 1.0, count))


def _cost_of(
    setting: FleetSetting, metres: np.ndarray, points: np.ndarray, watts: np.ndarray, disturbing: np.ndarray
) -> np.ndarray:
    """Returns what a task costs by channel (copies, channels)."""
    heads, tails, bits, joules = _columns(setting)
    sending = bits[points] / setting.radio.rates(setting.radio.gains(metres)[:, None] * watts, disturbing)
    spent = joules[points] + sending * watts + setting.waiting_watts * tails[points]
    return setting.costs(heads[points] + tails[points] + sending, spent)


def _columns(setting: FleetSetting) -> tuple[np.ndarray, ...]:
    """Returns seconds of heads, seconds at the edge and on the way back, bits and joules, by point."""
    table = setting.table
    behind = np.array(table.tail_seconds) + np.array(table.down_bits) / (setting.radio.down_mbit * 1e6)
    return np.array(table.head_seconds), behind, np.array(table.up_bits), np.array(table.head_joules)


def _alike(setting: FleetSetting, view: FleetView, point: int) -> FleetActions:
    """Returns one point and full power for all, and channels in turn."""
    shape = view.metres.shape
    channels = np.broadcast_to(np.arange(setting.devices) % setting.radio.channels, shape).copy()
    return FleetActions(np.full(shape, point), channels, np.full(shape, setting.radio.most_watts))
