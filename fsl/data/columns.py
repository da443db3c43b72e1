"""Finds and reads the columns of a data set that hold images, labels and natural ids."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsl.errors import DataError

log = logging.getLogger(__name__)


def find_column(rows: Any, name: str | None, kind: str, what: str, where: str) -> str:
    """Find the named column, or else the only one whose feature is a `kind` (or whose name is `what`)."""
    columns = list(rows.features)
    if name is not None:
        if name not in columns:
            raise DataError(
                f"{where} has no column '{name}' for the {what}s (columns: {', '.join(columns)}); give other data, "
                f"or name the column with data=images data.{what}_column"
            )
        return name
    found = [c for c in columns if type(rows.features[c]).__name__ == kind] or [c for c in columns if c == what]
    if len(found) != 1:
        raise DataError(
            f"{where} has {'no' if not found else 'several'} {what} column{'s' if found else ''} (columns: "
            f"{', '.join(columns)}); name it with data.{what}_column"
        )
    return found[0]


@dataclass(frozen=True)
class Labels:
    """Numbers the classes of a label column: class k is the k-th of the sorted `names` (integers or texts).

    With `given` class k is `given[k]` instead, and the column may lack some of these.
    """

    column: str
    names: np.ndarray
    where: str
    feature: Any = None
    given: tuple[str, ...] | None = None

    @classmethod
    def of(cls, train: Any, column: str, where: str, given: Sequence[str] | None = None) -> "Labels":
        """Read the classes of a training split: a ClassLabel's own, or the values that occur."""
        if given is not None and (len(given) < 2 or len(set(given)) < len(given)):
            raise DataError(f"data.classes={list(given)}: give the names of at least two classes, each once")
        feature = train.features[column]
        declared = getattr(feature, "num_classes", None)
        if declared is None and str(getattr(feature, "dtype", "")).rstrip("0123456789") not in (
            "int",
            "uint",
            "string",
            "large_string",
        ):
            raise DataError(
                f"column '{column}' of {where} has no class labels but {getattr(feature, 'dtype', 'lists')}; name a "
                "column of whole numbers or texts with data.label_column"
            )
        names = np.arange(declared) if declared is not None else np.unique(_labelled(train, column, where))
        if given is None and len(names) < 2:
            raise DataError(
                f"{where} has labels of {len(names)} class; classification needs at least 2: give other data, or "
                "another data.label_column"
            )
        return cls(column, names, where, feature, None if given is None else tuple(given))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes: as given, as the column declares, or as the labels read."""
        return self._own if self.given is None else self.given

    @property
    def _own(self) -> tuple[str, ...]:
        return tuple(map(str, getattr(self.feature, "names", None) or self.names.tolist()))

    def indices(self, rows: Any) -> np.ndarray:
        """Returns the class index of each row, int64 (N,); DataError for a missing label or an unknown class."""
        values = _labelled(rows, self.column, self.where)
        if values.dtype.kind != self.names.dtype.kind:
            raise DataError(
                f"column '{self.column}' of {self.where} has labels of another type in its test split; make them alike"
            )
        if self.given is not None:
            return self._as_given(values, self.given)
        indices = np.searchsorted(self.names, values)
        unknown = self.names[np.minimum(indices, len(self.names) - 1)] != values
        if unknown.any():
            shown = ", ".join(map(str, np.unique(values[unknown])[:5]))
            raise DataError(
                f"{self.where} has labels that are none of the {len(self.names)} classes of training: {shown}; leave "
                "those rows out, or name another split with data.test_split"
            )
        return indices.astype(np.int64)

    def _as_given(self, values: np.ndarray, given: tuple[str, ...]) -> np.ndarray:
        index = {name: k for k, name in enumerate(given)}
        declared = getattr(self.feature, "names", None)
        found, places = np.unique(values, return_inverse=True)
        called = [str(declared[value]) if declared else str(value) for value in found.tolist()]
        if unknown := [name for name in called if name not in index]:
            known = ", ".join(given[:10]) + (", ..." if len(given) > 10 else "")
            raise DataError(
                f"{self.where} has rows of classes that are none of the given ones: {', '.join(unknown[:5])}; the "
                f"classes are {known}: leave those rows out, or give all classes (in a federation, let "
                "the cloud's data have them)"
            )
        return np.array([index[name] for name in called], dtype=np.int64)[places.reshape(-1)]

    def tell_unseen(self, train: np.ndarray, test: np.ndarray) -> None:
        """Log test classes that the column declares and training lacks; `train` and `test` are class indices."""
        unseen = np.setdiff1d(test, train)
        if len(unseen):
            names = self.class_names
            shown = ", ".join(str(names[k]) for k in unseen[:5]) + (", ..." if len(unseen) > 5 else "")
            count = int(np.isin(test, unseen).sum())
            log.warning("%s: %d test rows are of classes that no training row has: %s", self.where, count, shown)


def natural_ids(rows: Any, column: str, where: str) -> np.ndarray:
    """Returns the natural id of each row (N,)."""
    ids = rows[find_column(rows, column, "", "group", where)][:]
    if None in ids:
        raise DataError(f"column '{column}' of {where} has rows without an id; name another with data.group_column")
    return np.asarray(ids)


def _labelled(rows: Any, column: str, where: str) -> np.ndarray:
    listed = rows[column][:]
    values = None if None in listed else np.asarray(listed)
    if values is None or (values.dtype.kind == "i" and values.size and values.min() < 0):
        shown = "null" if values is None else values.min()
        raise DataError(
            f"{where} has rows without a label ({column} = {shown}); leave those rows out, or name a split with labels "
            "with data.test_split"
        )
    return values
