"""What a fleet's agents are rewarded for."""

import numpy as np

from fsl.inference.many_devices.fleet_setting import FleetSetting
from fsl.inference.many_devices.fleet_simulation import SlotResult


def rewards(setting: FleetSetting, result: SlotResult) -> np.ndarray:
    """Returns the reward (copies,) of a slot, float32: what all tasks cost in it, with a minus.

    It is divided by what an episode's tasks cost if every device computes them alone: without discount, an episode of
    local tasks comes to about -1, and no other sum is maximized than the cost that is reported.
    """
    alone = setting.devices * setting.mean_tasks * setting.table.local_cost(setting.beta)
    return (-setting.costs(result.seconds, result.joules).sum(axis=1) / alone).astype(np.float32)
