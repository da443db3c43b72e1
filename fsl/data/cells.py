"""Reads the cells of a column as numbers or as texts, and says which are missing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fsl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")  # "?" as in the UCI collection


def plain(column: "pa.ChunkedArray", name: str, where: str, missing: Sequence[str] = MISSING) -> "pa.Array":
    """Returns cells as float64 numbers or as trimmed texts, missing ones null; DataError for any other kind."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    cells = column.combine_chunks()
    cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    if pa.types.is_null(kind):
        return pa.nulls(len(cells), pa.string())
    if pa.types.is_boolean(kind):
        return cells.cast(pa.string())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = cells.cast(pa.float64(), safe=False)
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    if not is_text(kind):
        raise DataError(
            f"column '{name}' of {where} holds {kind}, neither numbers nor texts; convert it, or leave it out with "
            f"data.ignore=[{name}]"
        )
    texts = pc.utf8_trim_whitespace(cells.cast(pa.string()))
    gone = pc.is_in(texts, value_set=pa.array(list(missing), pa.string()))
    return pc.if_else(gone, pa.scalar(None, pa.string()), texts)


def is_text(kind: "pa.DataType") -> bool:
    """Returns whether cells of this type are texts."""
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def as_numbers(cells: "pa.Array") -> np.ndarray | None:
    """Returns float64 numbers (N,), NaN where one is missing; None where some text is no number, or all are missing."""
    import pyarrow as pa

    if cells.null_count == len(cells):
        return None
    try:
        numbers = cells.cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    return np.array(numbers.to_numpy(zero_copy_only=False), dtype=np.float64)


def as_texts(cells: "pa.Array") -> np.ndarray:
    """Returns texts (N,), None where one is missing; whole numbers are written without a point."""
    if is_text(cells.type):
        return cells.to_numpy(zero_copy_only=False)
    return np.array([None if value is None else written(value) for value in cells.to_pylist()], dtype=object)


def written(number: float) -> str:
    """Returns a number as text: 3 for 3.0."""
    return str(int(number)) if number == int(number) else repr(number)


def first_text(cells: "pa.Array") -> tuple[int, str]:
    """Returns row and text of the first cell that is no number."""
    for row, text in enumerate(cells.to_pylist()):
        try:
            float("0" if text is None else text)
        except ValueError:
            return row, text
    return 0, str(cells[0])
