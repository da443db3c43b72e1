"""Who holds which training rows: partitions by `flwr-datasets`, and resampling for very many devices."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsl import seeds
from fsl.errors import ConfigError, DataError


class Partition(ABC):
    """Who holds which rows of the training set."""

    devices: int

    @abstractmethod
    def indices(self, device: int) -> Tensor:
        """A device's rows, int64 (n_k,)."""


@dataclass(frozen=True, eq=False)
class _Divided(Partition):
    """Rows of all devices behind each other: those of device k are rows[bounds[k]:bounds[k + 1]]."""

    devices: int
    rows: np.ndarray
    bounds: np.ndarray

    def indices(self, device: int) -> Tensor:
        """A slice."""
        return torch.from_numpy(self.rows[self.bounds[device] : self.bounds[device + 1]].copy())


@dataclass(frozen=True, eq=False)
class _Resampled(Partition):
    """Each device's rows are drawn when they are asked for, so a hundred thousand devices cost nothing."""

    devices: int
    rows: int
    samples: int
    seed: int

    def indices(self, device: int) -> Tensor:
        """Rows drawn with replacement."""
        generator = seeds.torch_generator(self.seed, "partition", device=device)
        return torch.randint(self.rows, (self.samples,), generator=generator).sort().values


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


def limited(partition: Partition, samples: int, seed: int) -> Partition:
    """The partition with at most so many rows a device, drawn from those it had."""
    if samples < 1:
        raise ConfigError(f"samples_per_device={samples}: it must be at least 1")
    if isinstance(partition, _Resampled):
        return partition
    return _Limited(partition.devices, partition, samples, seed)


class Partitioner(ABC):
    """A way to divide training rows among devices."""

    @abstractmethod
    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide rows with these targets; DataError where a device would get none."""


class _ByFlower(Partitioner):
    """A partitioner of flwr-datasets, which is given the labels and never the images."""

    @abstractmethod
    def flower(self, devices: int, seed: int) -> Any:
        """The flwr-datasets partitioner; it divides by the column `label`."""

    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide by class label."""
        _refuse_too_many(devices, len(targets))
        if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
            raise DataError(
                f"partition={type(self).__name__.lower()} goes by class labels, and these targets are "
                f"{targets.dtype} of shape {targets.shape}; use partition=iid or resample"
            )
        return _divide(self.flower(devices, seeds.derive(seed, "partition") % 2**32), targets, devices)


def _divide(partitioner: Any, labels: np.ndarray, devices: int) -> Partition:
    import datasets  # as flwr_datasets, seconds to import

    table = datasets.Dataset.from_dict({"label": labels, "row": np.arange(len(labels))}).with_format("numpy")
    partitioner.dataset = table
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = [np.sort(np.asarray(partitioner.load_partition(k)["row"][:])) for k in range(devices)]
    except ValueError as error:
        raise DataError(f"the data cannot be divided among {devices} devices: {' '.join(str(error).split())}") from None
    sizes = [len(part) for part in parts]
    if 0 in sizes:
        empty = [k for k, size in enumerate(sizes) if not size]
        raise DataError(
            f"{len(empty)} of {devices} devices would hold no samples (device {', '.join(map(str, empty[:5]))}"
            f"{', ...' if len(empty) > 5 else ''}); use fewer devices, another partition, or another seed"
        )
    return _Divided(devices, np.concatenate(parts).astype(np.int64), np.concatenate(([0], np.cumsum(sizes))))


def _refuse_too_many(devices: int, rows: int) -> None:
    if devices > rows:
        raise DataError(
            f"devices={devices}: there are only {rows} training samples; use fewer devices, or partition=resample"
        )


@dataclass(frozen=True)
class IID(Partitioner):
    """Shuffled, and divided into equal parts (they differ by one sample at most)."""

    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide without regard to targets."""
        from flwr_datasets.partitioner import IidPartitioner

        _refuse_too_many(devices, len(targets))
        order = seeds.numpy_generator(seed, "partition").permutation(len(targets))
        equal = _divide(IidPartitioner(num_partitions=devices), order, devices)
        assert isinstance(equal, _Divided)
        rows = np.concatenate([np.sort(order[equal.rows[a:b]]) for a, b in pairwise(equal.bounds)])
        return _Divided(devices, rows, equal.bounds)


@dataclass(frozen=True)
class Dirichlet(_ByFlower):
    """Each class is divided by proportions drawn from a Dirichlet(alpha): the smaller alpha, the more skewed.

    `min_samples`: draw again until every device has so many. Source: Hsu et al. 2019, arXiv 1909.06335.
    """

    alpha: float = 0.5
    min_samples: int = 1

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ConfigError(f"partition.alpha={self.alpha}: the concentration is a number above 0")
        if self.min_samples < 1:
            raise ConfigError(f"partition.min_samples={self.min_samples}: it must be at least 1")

    def flower(self, devices: int, seed: int) -> Any:
        """DirichletPartitioner."""
        from flwr_datasets.partitioner import DirichletPartitioner

        return DirichletPartitioner(
            num_partitions=devices,
            partition_by="label",
            alpha=self.alpha,
            min_partition_size=self.min_samples,
            seed=seed,
        )


@dataclass(frozen=True)
class Shards(_ByFlower):
    """Rows sorted by class and cut into shards; each device gets `shards_per_device` (McMahan et al. 2017)."""

    shards_per_device: int = 2

    def __post_init__(self) -> None:
        if self.shards_per_device < 1:
            raise ConfigError(f"partition.shards_per_device={self.shards_per_device}: it must be at least 1")

    def flower(self, devices: int, seed: int) -> Any:
        """ShardPartitioner."""
        from flwr_datasets.partitioner import ShardPartitioner

        return ShardPartitioner(
            num_partitions=devices,
            partition_by="label",
            num_shards_per_partition=self.shards_per_device,
            keep_incomplete_shard=True,
            seed=seed,
        )


@dataclass(frozen=True)
class Pathological(_ByFlower):
    """Each device holds samples of `classes_per_device` classes only, drawn at random."""

    classes_per_device: int = 2

    def __post_init__(self) -> None:
        if self.classes_per_device < 1:
            raise ConfigError(f"partition.classes_per_device={self.classes_per_device}: it must be at least 1")

    def flower(self, devices: int, seed: int) -> Any:
        """PathologicalPartitioner."""
        from flwr_datasets.partitioner import PathologicalPartitioner

        return PathologicalPartitioner(
            num_partitions=devices,
            partition_by="label",
            num_classes_per_partition=self.classes_per_device,
            class_assignment_mode="first-deterministic",  # so that no class is left without a device
            seed=seed,
        )


@dataclass(frozen=True)
class Natural(Partitioner):
    """A device per natural id (a writer, a user), as the data set says; the first `devices` ids in sorted order."""

    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide by the ids in `groups`."""
        from flwr_datasets.partitioner import NaturalIdPartitioner

        if groups is None:
            raise DataError("partition=natural: the data names no ids; set data.group_column, or use another partition")
        ids = np.unique(groups)
        if devices > len(ids):
            raise DataError(f"devices={devices}: the data has only {len(ids)} natural ids; use at most so many devices")
        return _divide(NaturalIdPartitioner(partition_by="label"), groups, devices)


@dataclass(frozen=True)
class Resample(Partitioner):
    """Every device draws `samples_per_device` rows with replacement, so that devices may outnumber samples."""

    samples_per_device: int | None = None

    def __post_init__(self) -> None:
        if self.samples_per_device is None or self.samples_per_device < 1:
            raise ConfigError(
                f"samples_per_device={self.samples_per_device}: partition=resample needs at least 1 sample a device; "
                "set samples_per_device=64, for example"
            )

    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Nothing is drawn yet."""
        assert self.samples_per_device is not None
        return _Resampled(devices, len(targets), self.samples_per_device, seed)


def class_counts(partition: Partition, targets: np.ndarray, devices: Sequence[int]) -> np.ndarray:
    """How many samples of each class these devices hold, (devices, classes)."""
    classes = int(targets.max()) + 1
    return np.stack([np.bincount(targets[partition.indices(k).numpy()], minlength=classes) for k in devices])
