"""What a device counts in averages, and the check that its n_k is what the cloud counted."""

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


def device_weight(samples: int, protected: bool) -> float:
    """Return what a device counts in an average: its n_k samples, or 1 where whole devices are protected."""
    return 1.0 if protected else float(samples)
