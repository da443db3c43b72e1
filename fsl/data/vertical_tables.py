"""Tables of several parties: one from scikit-learn, and files of one's own, a CSV for each party."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.data.vertical_data import EDGE, EdgeLabels, PartyTable, VerticalData, VerticalTask, vertical
from fsl.errors import DataError

# Of the ten measures of a cell's nucleus in the table, each as mean, error and worst value.
_MEASURES = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave_points",
    "symmetry",
    "fractal_dimension",
)
_TISSUE = ("texture", "smoothness", "symmetry", "fractal_dimension")


@checks_types("data.", DataError)
def breast_cancer(
    labels_at: str = EDGE, test_share: float = 0.25, alignment: str = "clear", party: str | None = None
) -> VerticalTask:
    """Load scikit-learn's embedded breast cancer table over two parties: 569 people, 2 classes.

    `imaging` has 18 columns on size and outline of cells (radius, perimeter, area, compactness, concavity, concave
    points), `laboratory` 12 on tissue (texture, smoothness, symmetry, fractal dimension). Columns are scaled by their
    training rows. `labels_at`: imaging, laboratory or edge. The test people are the same whatever the run's seed.
    `party`: what a node of a real federation holds, imaging, laboratory or edge; by default all.
    """
    table, labels = _breast_cancer()
    tissue = [column for column in range(30) if _MEASURES[column % 10] in _TISSUE]
    parties = {"imaging": [column for column in range(30) if column not in tissue], "laboratory": tissue}
    data = vertical(table, labels, parties=parties, labels_at=labels_at, name="breast_cancer")
    task = aligned_task(data, alignment, test_share, scale=True)
    return task if party is None else task.seen_at(party)


@checks_types("data.", DataError)
def vertical_csv(
    paths: Mapping[str, str],
    id: str,
    label: str,
    labels_at: str,
    columns: Mapping[str, Sequence[str]] | None = None,
    test_share: float = 0.25,
    scale: bool = True,
    alignment: str = "clear",
) -> VerticalTask:
    """Read a CSV file for each party, and align their rows by id.

    `paths`: the file of each party; labels at the edge come from one more, called edge. `id` and `label` name columns;
    the label column is in the file of `labels_at`. `columns`: the features of each party, by default all columns but
    those two. `scale`: features minus their mean, over their deviation, of the party's own training rows.
    """
    if not isinstance(paths, Mapping) or not [party for party in paths if party != EDGE]:
        raise DataError("data.paths: give each party's file, as data.paths={bank: bank.csv, shop: shop.csv}")
    if labels_at not in paths:
        raise DataError(f"data.labels_at={labels_at!r}: there is no file of it; data.paths has {', '.join(paths)}")
    frames = {party: read_csv(party, path, id) for party, path in paths.items()}
    if label not in frames[labels_at].columns:
        known = ", ".join(map(str, frames[labels_at].columns))
        raise DataError(f"data.label={label!r}: {paths[labels_at]} has no such column; it has {known}")
    names, labels = labels_of(frames[labels_at][label], paths[labels_at])
    parties = [party for party in paths if party != EDGE]
    if unknown := [party for party in columns or {} if party not in parties]:
        raise DataError(f"data.columns: there is no party {unknown[0]!r}; there are {', '.join(parties)}")
    tables = {}
    for party, frame in frames.items():
        if party == EDGE:
            continue
        given = (columns or {}).get(party)
        used = [name for name in frame.columns if name not in (id, label)] if given is None else list(given)
        for name, what in ((label, "of labels, which the model is to predict"), (id, "of ids")):
            if name in used:
                raise DataError(f"data.columns.{party}: {name!r} is the column {what}; leave it out")
        own = labels if party == labels_at else None
        tables[party] = PartyTable(list(frame[id]), numbers_of(frame, used, paths[party]), own)
    at: str | EdgeLabels = EdgeLabels(list(frames[EDGE][id]), labels) if labels_at == EDGE else labels_at
    return aligned_task(VerticalData(tables, at, name="vertical", class_names=names), alignment, test_share, scale)


def aligned_task(data: VerticalData, alignment: str, test_share: float, scale: bool) -> VerticalTask:
    """Returns training and test people of aligned data, its columns scaled if asked for."""
    train, test = replace(data, alignment=alignment).divided(test_share)
    # Their people are known to all parties, which need not compare them again.
    task = replace(train, alignment="clear").task(replace(test, alignment="clear"))
    return task.scaled_by_training() if scale else task


def _breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Read features (569, 30) and labels from scikit-learn's file, since its import takes seconds."""
    found = find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "breast_cancer.csv"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",", skiprows=1)
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_breast_cancer  # for a scikit-learn that keeps the file elsewhere

    features, labels = load_breast_cancer(return_X_y=True)
    return features, labels


def read_csv(party: str, path: str, id: str) -> Any:
    """Read a party's file with its ids as texts; DataError where that cannot be."""
    import pandas  # type: ignore[import-untyped]

    try:
        with catch_warnings():
            simplefilter("error", pandas.errors.ParserWarning)  # of rows that are longer than the first line
            frame = pandas.read_csv(path, dtype={id: str}, index_col=False)
    except (OSError, ValueError, pandas.errors.ParserWarning) as error:
        line = " ".join(str(error).split())
        raise DataError(f"data.paths.{party}={path}: it cannot be read as CSV ({line})") from None
    if id not in frame.columns:
        raise DataError(f"data.id={id!r}: {path} has no such column; it has {', '.join(map(str, frame.columns))}")
    if frame[id].isna().any():
        raise DataError(f"data.id={id!r}: {path} has rows without an id; leave them out")
    return frame


def labels_of(column: Any, path: str) -> tuple[tuple[str, ...] | None, Tensor]:
    """Returns the names of classes, and labels: numbers as they are, texts by their place in the sorted names."""
    if column.isna().any():
        raise DataError(f"{path} has rows without a label; leave them out")
    if column.dtype.kind in "iuf":
        return None, torch.from_numpy(column.to_numpy().copy())
    names, places = np.unique(column.astype(str).to_numpy(), return_inverse=True)
    return tuple(map(str, names)), torch.from_numpy(places.astype(np.int64))


def numbers_of(frame: Any, columns: Sequence[str], path: str) -> Tensor:
    """Returns columns of numbers (N, columns), float64; DataError for others."""
    if not columns:
        raise DataError(f"{path} has no column of features; give one at least")
    for name in columns:
        if name not in frame.columns:
            raise DataError(f"data.columns: {path} has no column {name!r}; it has {', '.join(map(str, frame.columns))}")
        if frame[name].dtype.kind not in "iufb":
            raise DataError(
                f"column {name!r} of {path} holds texts; encode it as numbers, or leave it out of data.columns"
            )
        if frame[name].isna().any():
            raise DataError(f"column {name!r} of {path} has empty cells; fill them, or leave it out of data.columns")
        if not np.isfinite(frame[name].to_numpy(dtype=np.float64)).all():
            raise DataError(
                f"column {name!r} of {path} has infinite values; replace them, or leave it out of data.columns"
            )
    return torch.from_numpy(frame[list(columns)].to_numpy(dtype=np.float64).copy())
