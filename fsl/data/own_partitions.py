"""Converts a user's partition: lists of rows, subsets, partitioners of flwr-datasets, names and classes."""

import contextlib
import copy
import inspect
import io
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from fsl.argument_types import checks_types
from fsl.data.origin import Rows
from fsl.data.partition import Partition
from fsl.data.partitioners import (
    IID,
    Dirichlet,
    Natural,
    Partitioner,
    Pathological,
    Proportional,
    Resample,
    Shards,
    check_devices,
    class_labels,
    divided,
)
from fsl.errors import ConfigError, DataError, FslError
from fsl.faults import said
from fsl.importing.building import built
from fsl.quoting import short

_NAMED = {
    kind.__name__.lower(): kind for kind in (IID, Dirichlet, Shards, Pathological, Natural, Proportional, Resample)
}
_WANTED = (
    f"a name ({', '.join(_NAMED)}), a Partitioner, a partitioner of flwr-datasets, or the rows of each device as a "
    "list of index lists"
)


def as_partitioner(value: Any, data: Any = None) -> Partitioner:
    """Convert a user's `partition=` to a Partitioner; ConfigError or DataError for what is none.

    `data` is the training data as the user gave it: Subsets must be of it. None is IID. A name or a class stands for
    its defaults, a list or mapping of index lists for `Given`, a Partition for itself, and a partitioner of
    flwr-datasets divides the labels by its own arguments and seed.
    """
    if value is None:
        return IID()
    if isinstance(value, Given):
        return value if data is None else value.of(data)
    if isinstance(value, Partitioner):
        return value
    if isinstance(value, Partition):
        return Fixed(value)
    if isinstance(value, str):
        if value.lower() not in _NAMED:
            raise ConfigError(f"partition={value!r}: it must be {_WANTED}")
        return _NAMED[value.lower()]()
    if isinstance(value, type):
        return _of_class(value)
    if _is_foreign(type(value)):
        return Foreign(value)
    if isinstance(value, Mapping) or (isinstance(value, Iterable) and not isinstance(value, bytes)):
        return Given(value) if data is None else Given(value).of(data)
    shown = getattr(value, "__name__", None) or (
        repr(value) if isinstance(value, int | float) else type(value).__name__
    )
    raise ConfigError(f"partition={shown}: it must be {_WANTED}")


class Given(Partitioner):
    """Gives each device the rows listed for it: a list, or a mapping by device id, of index lists, arrays or tensors.

    Devices may share rows, and rows may be left out (a run logs it); a device names a row once. The seed changes
    nothing. Subsets from torch's `random_split` work as well, where they are of the training data.
    """

    def __init__(self, rows: Iterable[Any] | Mapping[int, Any]):
        by_device = _by_device(rows)
        self.rows = [_indices(own, device) for device, own in enumerate(by_device)]
        self._subsets = {device: own for device, own in enumerate(by_device) if type(own) is Subset}
        if not self.rows:
            raise DataError("partition: it names no device; give a list of rows for each")

    def of(self, data: Any) -> "Given":
        """Convert to row numbers of the training data, as the user gave it; DataError for Subsets of other data."""
        if not self._subsets:
            return self
        known = Rows(data)
        return Given([known.of(self._subsets.get(device), own, device) for device, own in enumerate(self.rows)])

    @checks_types(error=DataError)
    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Returns the given rows; DataError where the training data has no such row."""
        if len(self.rows) != devices:
            raise ConfigError(
                f"partition names the rows of {len(self.rows)} devices, and devices={devices}; make them agree"
            )
        for device, own in enumerate(self.rows):
            if own[-1] >= len(targets):
                raise DataError(
                    f"partition: device {device} names row {own[-1]}, and there are {len(targets)} training rows; give "
                    f"rows from 0 to {len(targets) - 1}"
                )
        return divided(self.rows)


class Fixed(Partitioner):
    """Returns a finished Partition."""

    def __init__(self, partition: Partition):
        self.partition = partition

    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Returns the partition itself."""
        return self.partition


class Foreign(Partitioner):
    """Divides rows by a partitioner of flwr-datasets, which gets the labels (or natural ids) and never the inputs.

    It draws from its own seed. Its column is the labels, whatever it calls them; natural ids are the data's, where the
    column has another name than `label`.
    """

    def __init__(self, partitioner: Any):
        kind = type(partitioner).__name__
        if "Vertical" in kind:
            raise ConfigError(f"partition={kind}: it divides columns, and devices hold rows; use one that divides rows")
        if partitioner.is_dataset_assigned():
            raise ConfigError(f"partition={kind}: it has divided a data set already; give a new one")
        if getattr(partitioner, "_seed", 0) is None:
            raise ConfigError(f"partition={kind}: seed=None draws another partition in each process; give it a seed")
        self.partitioner = partitioner

    @property
    def arguments(self) -> dict[str, Any]:
        """Returns the partitioner's constructor arguments."""
        names = [name for name in inspect.signature(type(self.partitioner).__init__).parameters if name != "self"]
        kept = vars(self.partitioner)
        return {name: kept[key] for name in names for key in (name, f"_{name}") if key in kept}

    def divide(self, targets: np.ndarray, devices: int, seed: int, groups: np.ndarray | None = None) -> Partition:
        """Divide rows by the partitioner; DataError where it cannot divide these labels."""
        check_devices(devices, len(targets))
        kind, partitioner = type(self.partitioner).__name__, copy.deepcopy(self.partitioner)
        self._agree(getattr(partitioner, "_num_partitions", devices), devices)
        columns = {"row": np.arange(len(targets))} | self._columns(targets, groups)
        try:
            import datasets  # seconds to import

            partitioner.dataset = datasets.Dataset.from_dict(columns).with_format("numpy")
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # hides its progress bar
                warnings.simplefilter("ignore")
                self._agree(partitioner.num_partitions, devices)
                parts = [np.sort(np.asarray(partitioner.load_partition(k)["row"][:])) for k in range(devices)]
        except FslError:
            raise
        except Exception as error:
            reason = said(error)[:300]
            raise DataError(f"partition={kind}: it cannot divide these {len(targets)} rows ({reason})") from error
        return divided(parts)

    def _agree(self, partitions: int, devices: int) -> None:
        if partitions != devices:
            raise ConfigError(
                f"partition={type(self.partitioner).__name__}: it makes {partitions} partitions, and "
                f"devices={devices}; make them agree"
            )

    def _columns(self, targets: np.ndarray, groups: np.ndarray | None) -> dict[str, np.ndarray]:
        """Returns the partitioner's column, under the name that it expects."""
        name = getattr(self.partitioner, "_partition_by", None)
        if name is None:
            return {}
        if "Natural" in type(self.partitioner).__name__ and name != "label":
            if groups is None:
                raise DataError(
                    f"partition={type(self.partitioner).__name__}: the data names no ids '{name}'; give a TaskData "
                    "with groups, or partition_by='label' for a device per class"
                )
            return {name: groups}
        return {name: class_labels(targets, type(self.partitioner).__name__)}


def _of_class(kind: type) -> Partitioner:
    if _is_foreign(kind):
        raise ConfigError(f"partition={kind.__name__}: a class; give an object of it, with its num_partitions")
    if not issubclass(kind, Partitioner):
        raise ConfigError(f"partition={kind.__name__}: it must be {_WANTED}")
    return built("partition", kind)


def _is_foreign(kind: type) -> bool:
    """Returns whether a class is a partitioner of flwr-datasets, without the seconds of importing that."""
    return any(c.__name__ == "Partitioner" and c.__module__.startswith("flwr_datasets.") for c in kind.__mro__)


def _by_device(rows: Any) -> list[Any]:
    if not isinstance(rows, Mapping):
        if not isinstance(rows, Iterable) or isinstance(rows, str | bytes | type):
            raise DataError(f"partition: {short(rows)} names no rows; give a list of row numbers for each device")
        return list(rows)
    ids = sorted(rows) if all(isinstance(key, int | np.integer) and not isinstance(key, bool) for key in rows) else []
    if ids != list(range(len(rows))):
        raise DataError(
            f"partition: its keys are {', '.join(map(repr, list(rows)[:5]))}, and devices are numbered from 0; give "
            f"the rows of devices 0 to {max(len(rows) - 1, 0)}"
        )
    return [rows[device] for device in ids]


def _indices(own: Any, device: int) -> np.ndarray:
    """Returns a device's rows in ascending order, int64 (n,); DataError for invalid row numbers."""
    own = own.indices if type(own) is Subset else own
    if isinstance(own, int | float | np.number) or (isinstance(own, Tensor | np.ndarray) and own.ndim == 0):
        raise DataError(
            f"partition: device {device} is given {own}, no list of rows; give a list of rows for each device"
        )
    if isinstance(own, str | bytes | Mapping) or not isinstance(own, Iterable):
        raise DataError(f"partition: device {device} is given a {type(own).__name__}; give a list of row numbers")
    listed = own.detach().cpu().numpy() if isinstance(own, Tensor) else own
    try:
        rows = np.asarray(listed if isinstance(listed, np.ndarray) else list(listed))
    except ValueError:  # lists of several lengths
        rows = np.empty((0, 0), dtype=object)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        remedy = "take its nonzero()" if rows.dtype == bool else "give row numbers as whole numbers, in one list"
        raise DataError(f"partition: the rows of device {device} are {rows.dtype} of shape {rows.shape}; {remedy}")
    if not rows.size:
        raise DataError(f"partition: device {device} would hold no rows; give it some, or use fewer devices")
    rows = np.sort(rows.astype(np.int64))
    if rows[0] < 0:
        raise DataError(f"partition: device {device} names row {rows[0]}; rows are counted from 0")
    twice = rows[1:][rows[1:] == rows[:-1]]
    if len(twice):
        raise DataError(f"partition: device {device} names row {twice[0]} more than once; name each row once")
    return rows
