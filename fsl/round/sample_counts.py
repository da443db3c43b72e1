"""How many samples a device holds (n_k): the cloud's account and weights must be of what its node has."""

from collections.abc import Iterable

from fsl.data import Partition
from fsl.errors import ConfigError
from fsl.messages.round_plan import DeviceTask


def refuse_other_counts(tasks: Iterable[DeviceTask], partition: Partition) -> None:
    """ConfigError for a device that holds other samples than the plan counts; a plan that tells no number is taken."""
    for task in tasks:
        if task.samples and task.samples != (held := partition.size(task.device)):
            raise ConfigError(
                f"device {task.device} holds {held} samples here, and the run's plan counts {task.samples}: rates, "
                "weights and what its privacy costs would be wrong. Give cloud and node the same data and partition; "
                "in a real federation the cloud asks again before the next round"
            )
