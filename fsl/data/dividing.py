"""Asks a partitioner which device holds which rows, and checks its answer."""

import logging

import numpy as np
import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.data.partition import AllRows, Divided, Partition, Resampled, limited
from fsl.data.partitioners import Partitioner
from fsl.data.task import TaskData
from fsl.errors import DataError

log = logging.getLogger(__name__)


@checks_types(error=DataError)
def divide(task: TaskData, rule: "Partitioner", devices: int, samples: int | None, seed: int) -> Partition:
    """Divide a task's training rows among devices, at most `samples` for each.

    It logs rows that no device holds, or several. DataError where a rule's partition is not for these devices and rows.
    """
    divided = rule.divide(task.train.targets.numpy(), devices, seed, task.groups)
    if not isinstance(divided, AllRows | Resampled):
        _check_partition(divided, type(rule).__name__, devices, len(task.train))
    return divided if samples is None else limited(divided, samples, seed)


def _check_partition(partition: Partition, name: str, devices: int, count: int) -> None:
    if not isinstance(partition, Partition) or partition.devices != devices:
        what = f"of {partition.devices} devices" if isinstance(partition, Partition) else type(partition).__name__
        raise DataError(f"partition={name} gives a partition {what}, and devices={devices}; make them agree")
    if isinstance(partition, Divided):
        rows = partition.rows
    else:
        rows = np.concatenate([_rows(partition, device, name, count) for device in range(devices)])
    holders = np.bincount(rows, minlength=count)
    unused, shared = int((holders == 0).sum()), int((holders > 1).sum())
    if unused:
        log.warning("the partition leaves %d of %d training rows unused", unused, count)
    if shared:
        log.warning("the partition gives out %d of %d training rows more than once", shared, count)


def _rows(partition: Partition, device: int, name: str, count: int) -> np.ndarray:
    """Returns a device's rows from a user's own partition, checked."""
    rows = partition.indices(device)
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
        kind = f"{rows.dtype} of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise DataError(f"partition={name}: the rows of device {device} are {kind}; give a tensor of int64, (n,)")
    if not len(rows):
        raise DataError(
            f"partition={name}: device {device} holds no samples; a partition must give every device at least one"
        )
    if len(rows) != partition.size(device):
        raise DataError(
            f"partition={name}: device {device} has {len(rows)} rows, and its size is said to be "
            f"{partition.size(device)}; mend its size()"
        )
    if not 0 <= int(rows.min()) <= int(rows.max()) < count:
        wrong = int(rows.min() if rows.min() < 0 else rows.max())
        raise DataError(
            f"partition={name}: device {device} names row {wrong} of {count}; give rows from 0 to {count - 1}"
        )
    return rows.numpy()
