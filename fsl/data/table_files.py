"""Reads tables from CSV, Parquet and JSON-lines files, and finds training and test files in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_SUFFIXES = (".csv", ".parquet", ".jsonl", ".json")
_SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "validation", "valid", "dev")}
_KINDS = "a .csv, .parquet or .jsonl file"


def read_splits(path: Any, test_path: Any = None) -> "tuple[pa.Table, pa.Table | None, str]":
    """Read training rows, test rows (None where there are none), and the name of the data.

    `path` is a file, a folder with train.csv (or .parquet, .jsonl) and perhaps test.csv or validation.csv, a DataFrame,
    or an Arrow table; `test_path` a file or table of test rows. DataError for what is not there, cannot be read or has
    no rows.
    """
    train, found = _found(path, "data.path")
    test = found if test_path is None else _found(test_path, "data.test_path")[0]
    name = Path(path).expanduser().resolve().stem if isinstance(path, str | Path) else type(path).__name__
    return read_table(train, "data.path"), None if test is None else read_table(test, "data.test_path"), name


def _found(given: Any, option: str) -> tuple[Any, Path | None]:
    """Returns the file or table of training rows, and the test file beside it in a folder."""
    if not isinstance(given, str | Path):
        return given, None
    path = Path(given).expanduser()
    if path.is_file():
        return path, None
    if not path.is_dir():
        raise DataError(f"{option}={given}: there is no such file or folder; give {_KINDS}, or a folder with train.csv")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
    by_split = {split: [f for f in files if _split(f) in names] for split, names in _SPLITS.items()}
    for split, several in by_split.items():
        exact = [file for file in several if _split(file) == split]
        if len(several) > 1 and len(exact) == 1:  # test.csv goes before validation.csv
            by_split[split] = exact
        elif len(several) > 1:
            shown = ", ".join(file.name for file in several)
            raise DataError(
                f"{option}={given}: several files hold {split} rows ({shown}); give one file for each split"
            )
    if not by_split["train"]:
        shown = ", ".join(file.name for file in files[:5]) or "no table"
        raise DataError(f"{option}={given}: the folder has no train.csv, train.parquet or train.jsonl (it has {shown})")
    return by_split["train"][0], next(iter(by_split["test"]), None)


def _split(file: Path) -> str:
    """Returns the first word of a file's name: `test` of test-00000-of-00001.parquet."""
    return file.stem.lower().partition("-")[0].partition("_")[0].partition(".")[0]


def read_table(given: Any, option: str) -> "pa.Table":
    """Read a file, a DataFrame or an Arrow table; all cells of a CSV file are texts. DataError, in one line."""
    where = f"{option}={given}" if isinstance(given, str | Path) else f"the {type(given).__name__}"
    try:
        table = _read(given)
    except DataError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise DataError(
            f"{where} cannot be read as a table ({line}); give {_KINDS}, a DataFrame or an Arrow table"
        ) from None
    names = [name.strip() for name in table.column_names]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{where} has several columns '{doubled[0]}'; name each once, in the first line of a CSV file")
    if not table.num_rows:
        raise DataError(f"{where} has no rows{' but the one with the names' if names else ''}; give others")
    return table.rename_columns(names)


def _read(given: Any) -> "pa.Table":
    import pyarrow as pa

    if isinstance(given, pa.Table):
        return given
    if not isinstance(given, str | Path):
        if hasattr(given, "to_arrow"):  # polars
            return given.to_arrow()
        return pa.Table.from_pandas(given, preserve_index=False)
    path = Path(given)
    if not path.stat().st_size:
        raise DataError(f"{path} is empty; give a file with rows")
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        return parquet.read_table(path)
    if path.suffix.lower() in (".json", ".jsonl"):
        from pyarrow import json

        return json.read_json(path)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    raise DataError(f"{path.name} is no table; give {_KINDS}")


def _read_csv(path: Path) -> "pa.Table":
    """Read all cells as texts: which columns are numbers is decided once, by all of their rows."""
    import pyarrow as pa
    from pyarrow import csv

    lines = csv.ParseOptions(newlines_in_values=True)
    names = csv.open_csv(path, parse_options=lines).schema.names
    texts = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return csv.read_csv(path, parse_options=lines, convert_options=texts)


def column_of(table: "pa.Table", name: str, option: str, where: str) -> "pa.ChunkedArray":
    """Returns a column; DataError, with those that there are, for an unknown name."""
    if name not in table.column_names:
        raise DataError(f"{option}={name}: {where} has no such column; it has {listed(table.column_names)}")
    return table.column(name)


def listed(names: Sequence[object], most: int = 20) -> str:
    """Returns names for a message."""
    return ", ".join(str(name)[:60] for name in names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")
