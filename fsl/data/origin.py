"""Maps a Subset's rows to rows of the training data, where both go back to the same data."""

from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from fsl.data.examples import DatasetExamples, TensorExamples
from fsl.data.task import TaskData
from fsl.errors import DataError


class Rows:
    """Maps row numbers of Subsets to those of the training data `data`, as its user gave them."""

    def __init__(self, data: Any):
        self.data = _inside(data)
        self._base, rows = self.data, np.empty(0, dtype=np.int64)
        if type(self.data) is Subset:
            self._base, rows = _base(self.data, np.asarray(self.data.indices, dtype=np.int64))
        self._order = np.argsort(rows, kind="stable")
        self._sorted = rows[self._order]  # rows of the base; `_order` has their places in the training data

    def of(self, subset: "Subset[Any] | None", own: np.ndarray, device: int) -> np.ndarray:
        """Convert a device's rows `own` (n,) of `subset`'s dataset to rows of the training data; None: no conversion.

        DataError where the subset is of other data, or has rows outside of the training data.
        """
        if subset is None:
            return own
        found = _inside(subset.dataset)
        while not _same(found, self.data) and type(found) is Subset:
            own = _of_subset(found, own, device)
            found = _inside(found.dataset)
        if _same(found, self.data):
            return own
        if not len(self._sorted) or not _same(found, self._base):
            raise DataError(
                f"partition: device {device} is given a Subset of other data than the training data, which are "
                "other rows; give Subsets of the very object that is the training data, or lists of row numbers "
                "(subset.indices)"
            )
        first, last = np.searchsorted(self._sorted, own, "left"), np.searchsorted(self._sorted, own, "right")
        if len(wrong := own[last - first != 1]):
            what = "several times in" if wrong[0] in self._sorted else "not among"
            raise DataError(
                f"partition: device {device} has row {wrong[0]} of the dataset that the training data is a Subset of, "
                f"and that row is {what} the training data; give Subsets of the training data itself"
            )
        return self._order[first]


def _base(data: Any, rows: np.ndarray) -> tuple[Any, np.ndarray]:
    """Follow a Subset of Subsets to its base dataset; returns that, and the row numbers there."""
    data = _inside(data.dataset)
    while type(data) is Subset:
        rows = np.asarray(data.indices, dtype=np.int64)[rows]
        data = _inside(data.dataset)
    return data, rows


def _of_subset(subset: "Subset[Any]", own: np.ndarray, device: int) -> np.ndarray:
    if len(own) and own.max() >= len(subset):
        raise DataError(
            f"partition: device {device} names row {own.max()} of a Subset of {len(subset)} rows; give rows that it has"
        )
    return np.asarray(subset.indices, dtype=np.int64)[own]


def _inside(data: Any) -> Any:
    """Returns the Dataset behind a task or live examples."""
    data = data.train if isinstance(data, TaskData) else data
    return data.dataset if isinstance(data, DatasetExamples) else data


def _same(one: Any, other: Any) -> bool:
    """Returns whether two datasets have the same rows in the same order: one object, or the same tensors."""
    if one is other:
        return True
    mine, theirs = _tensors(one), _tensors(other)
    return bool(mine) and len(mine) == len(theirs) and all(map(_same_memory, mine, theirs))


def _tensors(data: Any) -> tuple[Any, ...]:
    if type(data) is TensorDataset:
        return data.tensors
    if type(data) is TensorExamples:
        return data.inputs, data.targets
    return tuple(data) if isinstance(data, tuple | list) and len(data) == 2 else ()


def _same_memory(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return False
    alike = one.shape == other.shape and one.dtype == other.dtype and one.stride() == other.stride()
    return alike and one.data_ptr() == other.data_ptr() != 0
