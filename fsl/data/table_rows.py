"""What tables of features and of texts have in common: rows for tests, the first rows alone, and natural ids."""

import logging
from typing import TYPE_CHECKING

import numpy as np

from fsl.data.rows_for_tests import test_rows
from fsl.data.table_files import column_of
from fsl.data.target_columns import TargetColumn
from fsl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)


def held_out(
    table: "pa.Table", aims: TargetColumn, share: float, where: str, declared: list[str] | None = None
) -> "tuple[pa.Table, pa.Table]":
    """Divide a table without test rows into training and test rows, with `share` of each class in the latter.

    `declared`: what the file says that its classes are called.
    """
    labels = aims.read(column_of(table, aims.column, "data.target", where), where, declared).numpy()
    kept, held = test_rows(labels if aims.names else np.zeros(len(labels)), share, where)
    log.warning("%s has no test rows: %d of its %d rows are held out for tests", where, len(held), len(labels))
    return table.take(kept), table.take(held)


def groups_of(table: "pa.Table", name: str | None, where: str) -> np.ndarray | None:
    """Returns the natural ids (N,) in a column; None without one, DataError where a row has none."""
    if name is None:
        return None
    ids = column_of(table, name, "data.group_column", where).to_pylist()
    if any(one is None or one == "" for one in ids):  # an empty cell of a CSV file is an empty text
        raise DataError(f"data.group_column={name}: {where} has rows without an id; leave them out")
    return np.asarray(ids)
