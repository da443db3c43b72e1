"""Checks that the n_k of the cloud's accounts and weights are those of the device's node."""

from collections.abc import Iterable

from fsl.data import Partition
from fsl.errors import ConfigError
from fsl.messages.round_plan import DeviceTask


def refuse_other_counts(tasks: Iterable[DeviceTask], partition: Partition) -> None:
    """Raise ConfigError for a device whose n_k differs from the plan's; accepts a plan without numbers."""
    for task in tasks:
        if task.samples and task.samples != (held := partition.size(task.device)):
            raise ConfigError(
                f"device {task.device} holds {held} samples here, and the run's plan counts {task.samples}: rates, "
                "weights and what its privacy costs would be wrong. Give cloud and node the same data and partition; "
                "in a real federation the cloud asks again before the next round"
            )
