"""Small fleets, and what fixed actions come to in them."""

import math

import numpy as np

from fsl.inference.many_devices import FleetActions, FleetSetting, FleetSimulation, RadioCell, jetson_nano_resnet18


def fleet(devices: int = 2, channels: int = 1, *, faster: float = math.inf, down: float = math.inf, **options):
    """Jetson Nanos with ResNet18; by default the edge takes no time, as in the paper."""
    radio = RadioCell(channels=channels, down_mbit=down)
    return FleetSetting(table=jetson_nano_resnet18(edge_times_as_fast=faster), devices=devices, radio=radio, **options)


def told(points, channels=None, watts=None) -> FleetActions:
    """Actions of one copy."""
    count = len(points)
    return FleetActions(
        np.array([points]), np.array([channels or [0] * count]), np.array([watts or [1.0] * count], dtype=float)
    )


def run(setting: FleetSetting, actions: FleetActions, metres: float | list[float] = 50.0, tasks: int = 10):
    """The records of all tasks, and all seconds and joules that passed, by device."""
    simulation = FleetSimulation(setting, 1, 0, logs=True)
    simulation.place(np.broadcast_to(metres, (1, setting.devices)), np.full((1, setting.devices), tasks))
    seconds, joules = np.zeros(setting.devices), np.zeros(setting.devices)
    for _ in range(100_000):
        result = simulation.step(actions)
        seconds += result.seconds[0]
        joules += result.joules[0]
        if result.terminated.all():
            return simulation.records, seconds, joules
    raise AssertionError("tasks are left")
