"""Who holds which training rows."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsl import seeds
from fsl.errors import ConfigError

log = logging.getLogger(__name__)


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
