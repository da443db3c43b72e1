"""Holds rows out for tests where a data set has no test split, and says how many rows may be asked for."""

import numpy as np

from fsl import seeds
from fsl.errors import DataError


def test_rows(labels: np.ndarray, share: float, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows into training and test rows, with `share` of each class in the latter, whatever the run's seed."""
    if not 0 < share < 1:
        raise DataError(f"data.test_share={share}: {where} has no test split; give a share in (0, 1)")
    order = seeds.numpy_generator(0, "test").permutation(len(labels))
    of_class = (order[labels[order] == label] for label in np.unique(labels))
    held = np.sort(np.concatenate([rows[: int(len(rows) * share)] for rows in of_class]))
    if not len(held):
        raise DataError(f"data.test_share={share}: no class of {where} has rows enough to hold one out; give more")
    return np.setdiff1d(np.arange(len(labels)), held), held


def refuse_no_rows(limit: int | None, test_limit: int | None) -> None:
    """Raise DataError for a number of training or test rows to take that leaves none."""
    for option, rows, kind in (("limit", limit, "training"), ("test_limit", test_limit, "test")):
        if rows is not None and rows < 1:
            raise DataError(f"data.{option}={rows}: the number of {kind} rows must be at least 1")
