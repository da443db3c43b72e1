"""Who holds which training rows."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fsl import seeds
from fsl.data.task import TaskData
from fsl.errors import ConfigError, DataError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from fsl.data.partitioners import Partitioner  # which makes partitions


class Partition(ABC):
    """Who holds which rows of the training set."""

    devices: int

    @abstractmethod
    def indices(self, device: int) -> Tensor:
        """A device's rows, int64 (n_k,), in ascending order; the same at every call."""

    @abstractmethod
    def size(self, device: int) -> int:
        """How many rows a device holds."""


@dataclass(frozen=True, eq=False)
class Divided(Partition):
    """Rows of all devices behind each other: those of device k are rows[bounds[k]:bounds[k + 1]]."""

    devices: int
    rows: np.ndarray
    bounds: np.ndarray

    def indices(self, device: int) -> Tensor:
        """A slice."""
        return torch.from_numpy(self.rows[self.bounds[device] : self.bounds[device + 1]].copy())

    def size(self, device: int) -> int:
        """The distance of two bounds."""
        return int(self.bounds[device + 1] - self.bounds[device])


@dataclass(frozen=True, eq=False)
class Resampled(Partition):
    """Each device's rows are drawn when they are asked for, so a hundred thousand devices cost nothing."""

    devices: int
    rows: int
    samples: int
    seed: int

    def indices(self, device: int) -> Tensor:
        """Rows drawn with replacement."""
        generator = seeds.torch_generator(self.seed, "partition", device=device)
        return torch.randint(self.rows, (self.samples,), generator=generator).sort().values

    def size(self, device: int) -> int:
        """The same for all."""
        return self.samples


@dataclass(frozen=True, eq=False)
class _Limited(Partition):
    devices: int
    whole: Partition
    samples: int
    seed: int

    def indices(self, device: int) -> Tensor:
        rows = self.whole.indices(device)
        generator = seeds.torch_generator(self.seed, "limit", device=device)
        return rows[torch.randperm(len(rows), generator=generator)[: self.samples].sort().values]

    def size(self, device: int) -> int:
        return min(self.samples, self.whole.size(device))


def limited(partition: Partition, samples: int, seed: int) -> Partition:
    """The partition with at most so many rows a device, drawn from those it had."""
    if samples < 1:
        raise ConfigError(f"samples_per_device={samples}: it must be at least 1")
    if isinstance(partition, Resampled):
        return partition
    return _Limited(partition.devices, partition, samples, seed)


def divide(task: TaskData, rule: "Partitioner", devices: int, samples: int | None, seed: int) -> Partition:
    """Who holds which rows of a task, at most `samples` a device.

    Rows that no device holds, or several, are told in the log. DataError where a rule's partition is not for these
    devices and rows.
    """
    divided = rule.divide(task.train.targets.numpy(), devices, seed, task.groups)
    if not isinstance(divided, Resampled):
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
    """A device's rows, by a partition that a user has written."""
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


def class_counts(
    partition: Partition, targets: np.ndarray, devices: Sequence[int], classes: int | None = None
) -> np.ndarray:
    """How many samples of each class these devices hold, (devices, classes); targets of no class are left out."""
    classes = int(targets.max()) + 1 if classes is None else classes
    counts = np.zeros((len(devices), classes), dtype=np.int64)
    for row, device in zip(counts, devices):
        held = targets[partition.indices(device).numpy()]
        row += np.bincount(held[(held >= 0) & (held < classes)], minlength=classes)
    return counts
