"""The table of one party of a real federation: features, or labels, of people whom all parties know."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.data.tree_examples import TreeExamples
from fsl.data.vertical_data import EDGE, EdgeLabels, PartyTable, VerticalData, VerticalTask
from fsl.data.vertical_tables import aligned_task, labels_of, numbers_of, read_csv
from fsl.errors import DataError
from fsl.models.vertical_model import check_parties
from fsl.quoting import short

_LEAST = 2  # classes
_BLANK = 2  # rows for who has none: by them a run checks that model, loss and metrics go together


@checks_types("data.", DataError)
def party_csv(
    columns: Mapping[str, Sequence[str]],
    id: str,
    label: str,
    labels_at: str,
    classes: int | Sequence[str] | None = None,
    test_share: float = 0.25,
    scale: bool = True,
    party: str | None = None,
    path: str | None = None,
) -> VerticalTask:
    """Read one party's CSV file, of people whom all parties know: what a node of a real federation holds.

    `columns`: the features of every party, for the sizes of their fronts. `classes`: how many there are, or the names
    of those that the label column has; None: labels are numbers to be predicted. `party`: whose file `path` is, a
    party's or the edge's; who reads none (the cloud, and an edge without labels) gets blank rows of these sizes.
    Rows are in the order of ids, and the same people are held out everywhere.
    """
    parties = _named_columns(columns, labels_at, id, label)
    classes = _named_classes(classes)
    if not 0 < test_share < 1:
        raise DataError(f"data.test_share={test_share!r}: it is a number between 0 and 1, the share of people held out")
    if party is not None and party not in (*parties, EDGE):
        raise DataError(f"party={party!r}: there are {', '.join(parties)}, and {EDGE}")
    labelled = party == labels_at
    if path is None or (party == EDGE and not labelled):
        if party is not None and (party != EDGE or labelled):
            who, what = ("the edge", "labels") if party == EDGE else (f"party {party!r}", "rows")
            raise DataError(f"{who} has no file of its {what}; give its node data-path, the path of its CSV")
        return _blank_rows(columns, labels_at, classes, party)
    if party is None:
        raise DataError(f"data.path={path}: whose file it is is not said; give data.party, one of {', '.join(parties)}")
    frame = read_csv(party, path, id)
    ids = list(frame[id])
    if labelled and label not in frame.columns:
        known = ", ".join(map(str, frame.columns))
        raise DataError(f"data.label={label!r}: {path} has no such column; it has {known}")
    targets = _told_labels(frame[label], path, classes) if labelled else _no_labels(len(ids), classes)
    own = columns.get(party, ())
    tables = {
        one: PartyTable(
            ids, numbers_of(frame, list(own), path) if one == party else torch.zeros(1, len(names)).expand(len(ids), -1)
        )
        for one, names in columns.items()
    }
    names = classes if isinstance(classes, tuple) else None
    data = VerticalData(tables, EdgeLabels(ids, targets), name="vertical", class_names=names)
    holder = None if labels_at == EDGE else labels_at
    task = aligned_task(data, "clear", test_share, scale)
    return replace(task, label_party=holder, classes=_count(classes)).seen_at(party)


def _named_columns(columns: Mapping[str, Sequence[str]], labels_at: str, id: str, label: str) -> list[str]:
    """Returns the parties; DataError where their columns cannot be."""
    if not columns:
        raise DataError("data.columns: name each party's columns, as {bank: [age, income], shop: [visits]}")
    if EDGE in columns:
        raise DataError(f"data.columns: '{EDGE}' names who runs the back; choose another name for that party")
    check_parties("data.columns", list(columns))
    for party, own in columns.items():
        if not own:
            raise DataError(f"data.columns.{party}={short(own)}: it is a list of names of columns, one at least")
        if twice := next((name for name in own if list(own).count(name) > 1), None):
            raise DataError(f"data.columns.{party}: {twice!r} is there twice; name each column once")
        for name, what in ((label, "of labels, which the model is to predict"), (id, "of ids")):
            if name in own:
                raise DataError(f"data.columns.{party}: {name!r} is the column {what}; leave it out")
    if labels_at not in (*columns, EDGE):
        raise DataError(f"data.labels_at={labels_at!r}: it is {EDGE} or one of the parties {', '.join(columns)}")
    return list(columns)


def _named_classes(classes: int | Sequence[str] | None) -> int | tuple[str, ...] | None:
    """Returns how many classes there are, or their names; DataError for what is neither."""
    if classes is None:
        return None
    names = () if isinstance(classes, int) else tuple(classes)
    if isinstance(classes, int) and classes >= _LEAST:
        return classes
    if len(set(names)) < max(len(names), _LEAST):
        raise DataError(
            f"data.classes={short(classes)}: it is a number from {_LEAST} on, or a list of {_LEAST} names or more, as "
            "[no, yes], each once; null where labels are numbers to be predicted"
        )
    return names


def _blank_rows(
    columns: Mapping[str, Sequence[str]], labels_at: str, classes: int | tuple[str, ...] | None, party: str | None
) -> VerticalTask:
    inputs = {name: torch.zeros(_BLANK, len(own)) for name, own in columns.items()}
    blank = TreeExamples(inputs, _no_labels(_BLANK, classes))
    return VerticalTask(
        "vertical",
        blank,
        blank,
        _count(classes),
        class_names=classes if isinstance(classes, tuple) else None,
        parties=tuple(columns),
        label_party=None if labels_at == EDGE else labels_at,
        held=party or EDGE,
    )


def _count(classes: int | tuple[str, ...] | None) -> int | None:
    return len(classes) if isinstance(classes, tuple) else classes


def _no_labels(rows: int, classes: int | tuple[str, ...] | None) -> Tensor:
    return torch.zeros(rows, dtype=torch.float32 if classes is None else torch.int64)


def _told_labels(column: Any, path: str, classes: int | tuple[str, ...] | None) -> Tensor:
    """Returns labels as the run numbers its classes; DataError for one that is none of them."""
    names, labels = labels_of(column, path)
    if not isinstance(classes, tuple):
        if names is not None:
            raise DataError(f"{path} has labels that are texts ({', '.join(names[:5])}); name them in data.classes")
        if classes is None:
            return labels.to(torch.float32)
        if labels.is_floating_point() or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
            raise DataError(f"{path} has labels that are no whole numbers 0 to {classes - 1} (data.classes={classes})")
        return labels.to(torch.int64)
    known = {name: place for place, name in enumerate(classes)}
    texts = column.astype(str).tolist()
    if other := next((text for text in texts if text not in known), None):
        raise DataError(f"{path} has the label {other!r}; data.classes has {', '.join(known)}")
    return torch.tensor([known[text] for text in texts])
