"""Says which device holds which training rows."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError

log = logging.getLogger(__name__)


class Partition(ABC):
    """Assigns training rows to devices."""

    devices: int

    @abstractmethod
    def indices(self, device: int) -> Tensor:
        """Returns a device's rows, int64 (n_k,), in ascending order; the same at every call."""

    @abstractmethod
    def size(self, device: int) -> int:
        """Returns a device's number of rows, n_k."""


@dataclass(frozen=True, eq=False)
class Divided(Partition):
    """Stores the rows of all devices behind each other: device k has rows[bounds[k]:bounds[k + 1]]."""

    devices: int
    rows: np.ndarray
    bounds: np.ndarray

    def indices(self, device: int) -> Tensor:
        """Returns a device's slice of the rows."""
        return torch.from_numpy(self.rows[self.bounds[device] : self.bounds[device + 1]].copy())

    def size(self, device: int) -> int:
        """Returns the distance of a device's bounds."""
        return int(self.bounds[device + 1] - self.bounds[device])


@dataclass(frozen=True, eq=False)
class Resampled(Partition):
    """Draws a device's rows when somebody asks for them, so that a hundred thousand devices cost nothing."""

    devices: int
    rows: int
    samples: int
    seed: int

    def indices(self, device: int) -> Tensor:
        """Draw a device's rows with replacement, from the seed."""
        generator = seeds.torch_generator(self.seed, "partition", device=device)
        return torch.randint(self.rows, (self.samples,), generator=generator).sort().values

    def size(self, device: int) -> int:
        """Returns the number of rows, the same for all devices."""
        return self.samples


@dataclass(frozen=True, eq=False)
class AllRows(Partition):
    """Gives all rows to every device: to parties, which have features of every row, and to a node that is one."""

    devices: int
    rows: int

    def indices(self, device: int) -> Tensor:
        """Returns all rows."""
        return torch.arange(self.rows)

    def size(self, device: int) -> int:
        """Returns the number of rows."""
        return self.rows


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


@checks_types()
def limited(partition: Partition, samples: int, seed: int) -> Partition:
    """Limit a partition to `samples` rows a device, drawn from the device's rows."""
    if samples < 1:
        raise ConfigError(f"samples_per_device={samples}: it must be at least 1")
    if isinstance(partition, Resampled):
        return partition
    return _Limited(partition.devices, partition, samples, seed)


@checks_types()
def class_counts(
    partition: Partition, targets: np.ndarray, devices: Sequence[int], classes: int | None = None
) -> np.ndarray:
    """Count these devices' samples of each class, (devices, classes); leaves out targets of no class."""
    if classes is not None and classes < 1:
        raise ConfigError(f"classes={classes}: give the number of classes, at least 1, or None to read it from targets")
    classes = int(targets.max()) + 1 if classes is None else classes
    counts = np.zeros((len(devices), classes), dtype=np.int64)
    for row, device in zip(counts, devices):
        held = targets[partition.indices(device).numpy()]
        row += np.bincount(held[(held >= 0) & (held < classes)], minlength=classes)
    return counts
