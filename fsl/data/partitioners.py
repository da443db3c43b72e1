"""Divides training rows among devices: mostly by `flwr-datasets`; by resampling for very many devices."""

import contextlib
import io
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.data.partition import Divided, Partition, Resampled
from fsl.errors import ConfigError, DataError


class Partitioner(ABC):
    """A rule that divides training rows among devices."""

    @abstractmethod
    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide rows with these targets; DataError where a device would get none."""


def check_devices(devices: int, rows: int) -> None:
    """Raise ConfigError or DataError where there are fewer rows than devices, or no device."""
    if devices < 1:
        raise ConfigError(f"devices={devices}: it must be at least 1")
    if devices > rows:
        raise DataError(
            f"devices={devices}: there are only {rows} training samples; use fewer devices, or partition=resample"
        )


def class_labels(targets: np.ndarray, partition: str) -> np.ndarray:
    """Returns the targets (N,) where they are class labels; DataError otherwise."""
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        raise DataError(
            f"partition={partition} goes by class labels, and these targets are {targets.dtype} of shape "
            f"{targets.shape}; use partition=iid or resample"
        )
    return targets


def _parts(partitioner: Any, labels: np.ndarray, devices: int) -> list[np.ndarray]:
    """Divide rows by a partitioner of flwr-datasets, which gets the labels and never the images."""
    import datasets  # like flwr_datasets, it takes seconds to import

    partitioner.dataset = datasets.Dataset.from_dict({"label": labels, "row": np.arange(len(labels))}).with_format(
        "numpy"
    )
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # hides its progress bar
        warnings.simplefilter("ignore")
        return [np.sort(np.asarray(partitioner.load_partition(k)["row"][:])) for k in range(devices)]


def divided(parts: Sequence[np.ndarray]) -> Partition:
    """Make a partition from each device's rows; DataError where a device has none."""
    empty = [k for k, part in enumerate(parts) if not len(part)]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(parts)} devices would hold no samples ({_named(empty)}); use fewer devices, another "
            "partition, or another seed"
        )
    bounds = np.concatenate(([0], np.cumsum([len(part) for part in parts])))
    return Divided(len(parts), np.concatenate(parts).astype(np.int64), bounds)


def _named(devices: Sequence[int]) -> str:
    return f"device {', '.join(map(str, devices[:5]))}{', ...' if len(devices) > 5 else ''}"


@dataclass(frozen=True)
class IID(Partitioner):
    """Shuffles rows and divides them into equal parts, which differ by one sample at most."""

    @checks_types(error=DataError)
    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide without regard to targets."""
        check_devices(devices, len(targets))
        order = seeds.numpy_generator(seed, "partition").permutation(len(targets))
        # Like flwr-datasets' IidPartitioner, without the seconds of its import. The first devices hold one row more.
        size, more = divmod(len(order), devices)
        large, small = order[: more * (size + 1)], order[more * (size + 1) :]
        rows = [np.sort(part.reshape(-1, n), axis=1).reshape(-1) for part, n in ((large, size + 1), (small, size))]
        sizes = np.full(devices, size)
        sizes[:more] += 1
        return Divided(devices, np.concatenate(rows).astype(np.int64), np.concatenate(([0], np.cumsum(sizes))))


@checks_types("partition.")
@dataclass(frozen=True)
class Proportional(Partitioner):
    """Shuffles rows and divides them in proportion to `shares`, a number above 0 per device: [0.5, 0.25, 0.25]."""

    shares: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not self.shares or not all(math.isfinite(share) and share > 0 for share in self.shares):
            raise ConfigError(f"partition.shares={list(self.shares)}: give each device a share above 0")

    @checks_types(error=DataError)
    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide without regard to targets."""
        check_devices(devices, len(targets))
        if len(self.shares) != devices:
            raise ConfigError(f"partition.shares has {len(self.shares)} entries for devices={devices}; give one each")
        order = seeds.numpy_generator(seed, "partition").permutation(len(targets))
        bounds = np.round(np.cumsum(self.shares) / np.sum(self.shares) * len(order)).astype(int)
        return divided([np.sort(part) for part in np.split(order, bounds[:-1])])


@checks_types("partition.")
@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Divides each class by proportions drawn from a Dirichlet(alpha): the smaller alpha, the more skewed.

    `min_samples`: draw again, ten times at most, until every device has so many. Source: Hsu et al. 2019,
    arXiv 1909.06335.
    """

    alpha: float = 0.5
    min_samples: int = 1

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ConfigError(f"partition.alpha={self.alpha}: the concentration is a finite number above 0")
        if self.min_samples < 1:
            raise ConfigError(f"partition.min_samples={self.min_samples}: it must be at least 1")

    @checks_types(error=DataError)
    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide class by class."""
        check_devices(devices, len(targets))
        labels = class_labels(targets, "dirichlet")
        if devices * self.min_samples > len(labels):
            raise DataError(
                f"partition.min_samples={self.min_samples}: {devices} devices cannot hold so many of {len(labels)} "
                f"training samples; use at most {len(labels) // devices}"
            )
        try:
            return divided(_parts(self._drawn(devices, seed, self.min_samples), labels, devices))
        except DataError:
            raise
        except ValueError:  # ten more draws did not succeed either
            first = _parts(self._drawn(devices, seed, 0), labels, devices)
        short = [k for k, part in enumerate(first) if len(part) < self.min_samples]
        raise DataError(
            f"partition.alpha={self.alpha}: {len(short)} of {devices} devices would hold fewer than "
            f"{self.min_samples} sample{'s' if self.min_samples > 1 else ''} ({_named(short)}), and ten more draws "
            "were no better; use a larger alpha, fewer devices, or another seed"
        )

    def _drawn(self, devices: int, seed: int, min_samples: int) -> Any:
        from flwr_datasets.partitioner import DirichletPartitioner

        return DirichletPartitioner(
            num_partitions=devices,
            partition_by="label",
            alpha=self.alpha,
            min_partition_size=min_samples,
            seed=seeds.derive(seed, "partition"),
        )


@checks_types("partition.")
@dataclass(frozen=True)
class Shards(Partitioner):
    """Sorts rows by class, cuts equal shards, and gives each device `shards_per_device` (McMahan et al. 2017).

    Shards differ by one sample at most, and contain all rows.
    """

    shards_per_device: int = 2

    def __post_init__(self) -> None:
        if self.shards_per_device < 1:
            raise ConfigError(f"partition.shards_per_device={self.shards_per_device}: it must be at least 1")

    @checks_types(error=DataError)
    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide by shards."""
        from flwr_datasets.partitioner import ShardPartitioner

        check_devices(devices, len(targets))
        count = devices * self.shards_per_device
        if count > len(targets):
            raise DataError(
                f"partition.shards_per_device={self.shards_per_device}: {devices} devices make {count} shards, and "
                f"there are only {len(targets)} training samples; use at most {len(targets) // devices}"
            )
        by_class = np.argsort(class_labels(targets, "shards"), kind="stable")
        shards = np.array_split(by_class, count)
        # flwr-datasets deals out shards here: from rows it would cut shards of a rounded size and drop the rest.
        dealer = ShardPartitioner(
            num_partitions=devices,
            partition_by="label",
            num_shards_per_partition=self.shards_per_device,
            seed=seeds.derive(seed, "partition"),
        )
        hands = _parts(dealer, np.arange(count), devices)
        return divided([np.sort(np.concatenate([shards[i] for i in hand])) for hand in hands])


@checks_types("partition.")
@dataclass(frozen=True)
class Pathological(Partitioner):
    """Gives each device samples of only `classes_per_device` classes, drawn at random.

    With fewer devices than classes, nobody trains on a class that no device drew.
    """

    classes_per_device: int = 2

    def __post_init__(self) -> None:
        if self.classes_per_device < 1:
            raise ConfigError(f"partition.classes_per_device={self.classes_per_device}: it must be at least 1")

    @checks_types(error=DataError)
    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide each class among the devices that drew it."""
        from flwr_datasets.partitioner import PathologicalPartitioner

        check_devices(devices, len(targets))
        labels = class_labels(targets, "pathological")
        classes = len(np.unique(labels))
        if self.classes_per_device > classes:
            raise DataError(
                f"partition.classes_per_device={self.classes_per_device}: the training data has {classes} classes; "
                f"use at most {classes}"
            )
        partitioner = PathologicalPartitioner(
            num_partitions=devices,
            partition_by="label",
            num_classes_per_partition=self.classes_per_device,
            class_assignment_mode="first-deterministic",  # so that enough devices leave no class out
            seed=seeds.derive(seed, "partition"),
        )
        try:
            parts = _parts(partitioner, labels, devices)
        except ValueError:
            raise DataError(
                f"partition.classes_per_device={self.classes_per_device}: among {devices} devices some class would be "
                "shared by more devices than it has samples; use fewer devices or classes a device, or another seed"
            ) from None
        return divided(parts)


@dataclass(frozen=True)
class Natural(Partitioner):
    """Makes each natural id (a writer, a user) of the data set a device: the first `devices` ids in sorted order."""

    @checks_types(error=DataError)
    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide by the ids in `groups`, one for each row."""
        from flwr_datasets.partitioner import NaturalIdPartitioner

        check_devices(devices, len(targets))
        if groups is None:
            raise DataError("partition=natural: the data names no ids; set data.group_column, or use another partition")
        if len(groups) != len(targets):
            raise DataError(
                f"partition=natural: there are {len(groups)} ids for {len(targets)} rows; give one for each"
            )
        ids = len(np.unique(groups))
        if devices > ids:
            raise DataError(f"devices={devices}: the data has only {ids} natural ids; use at most so many devices")
        return divided(_parts(NaturalIdPartitioner(partition_by="label"), groups, devices))


@checks_types()
@dataclass(frozen=True)
class Resample(Partitioner):
    """Lets every device draw `samples_per_device` rows with replacement, so that devices may outnumber samples."""

    samples_per_device: int | None = None

    def __post_init__(self) -> None:
        if self.samples_per_device is None or self.samples_per_device < 1:
            raise ConfigError(
                f"samples_per_device={self.samples_per_device}: partition=resample needs at least 1 sample a device; "
                "set samples_per_device=64, for example"
            )

    @checks_types(error=DataError)
    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Returns a partition that draws rows when they are asked for."""
        assert self.samples_per_device is not None
        check_devices(devices, devices if len(targets) else 0)
        return Resampled(devices, len(targets), self.samples_per_device, seed)
