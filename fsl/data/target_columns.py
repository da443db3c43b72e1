"""Decides what a table's target column holds, classes or numbers, and turns it into targets."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fsl.data.cells import as_numbers, as_texts, first_text, plain, written
from fsl.data.table_files import listed
from fsl.errors import DataError, one_of

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

Task = Literal["auto", "classification", "regression"]
_MOST = 20  # different whole numbers that count as classes, where nobody says what they are


@dataclass(frozen=True)
class TargetColumn:
    """What a column holds: the names of classes in their order, or numbers (no names). `option` names it in errors."""

    column: str
    option: str
    names: tuple[str, ...] | None

    @staticmethod
    def of(
        column: "pa.ChunkedArray",
        name: str,
        option: str,
        where: str,
        task: str = "auto",
        classes: Sequence[str] | None = None,
        declared: Sequence[str] | None = None,
    ) -> "TargetColumn":
        """Decide by a training column; log what numbers are taken for. DataError for a column that can be no target.

        Texts and truth values are classes, numbers with fractions are not; whole numbers are classes where there are
        at most 20 different ones. `task` decides otherwise. `classes` names all classes in their order (without it:
        those of the column, sorted), `declared` what whole numbers are called that the data set names itself.
        """
        one_of("data.task", task, get_args(Task))
        if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
            raise DataError(f"data.classes={list(classes)}: give the names of at least two classes, each once")
        if task == "regression" and classes is not None:
            raise DataError(f"data.classes={list(classes)}: a regression has no classes; leave them out")
        cells = _complete(column, name, option, where)
        numbers = as_numbers(cells)
        if declared is not None or (task != "regression" and (task == "classification" or _are_classes(numbers))):
            names = tuple(classes) if classes is not None else tuple(declared or _sorted(numbers, cells))
            if len(names) < 2:
                raise DataError(
                    f"{option}={name}: the column has one class in {where} ({listed(names)}), and a classification "
                    "needs two; name another column, or data.task=regression for numbers"
                )
            if task == "auto" and classes is None and declared is None and numbers is not None:
                log.warning(
                    "%s=%s: whole numbers of %d kinds, taken as classes; data.task=regression takes them as numbers",
                    *(option, name, len(names)),
                )
            return TargetColumn(name, option, names)
        if numbers is None:
            row, text = first_text(cells)
            raise DataError(f"data.task=regression: {option}={name} has '{text[:60]}' in row {row}, which is no number")
        if task == "auto":
            log.warning(
                "%s=%s: numbers, taken for a regression, with which objective=mse goes, or l1, huber", option, name
            )
        return TargetColumn(name, option, None)

    def read(self, column: "pa.ChunkedArray", where: str, declared: Sequence[str] | None = None) -> Tensor:
        """Returns class indices int64 (N,), or numbers float32 (N, 1); DataError for what was not so in training."""
        cells = _complete(column, self.column, self.option, where)
        numbers = as_numbers(cells)
        if self.names is None:
            if numbers is None:
                row, text = first_text(cells)
                raise DataError(
                    f"{self.option}={self.column}: {where} has '{text[:60]}' in row {row}, and the run's targets are "
                    "numbers; mend that row"
                )
            if not np.isfinite(numbers).all():
                raise DataError(f"{self.option}={self.column}: {where} has numbers that are not finite; leave them out")
            return torch.from_numpy(numbers.astype(np.float32))[:, None]
        texts = _named(numbers, cells, declared)
        index = {name: k for k, name in enumerate(self.names)}
        if unknown := sorted({text for text in texts if text not in index}):
            raise DataError(
                f"{self.option}={self.column}: {where} has rows of classes that are none of the run's: "
                f"{listed(unknown, 5)}; these are {listed(self.names)}: leave those rows out, or name all with "
                "data.classes"
            )
        return torch.tensor([index[text] for text in texts], dtype=torch.int64)


def _complete(column: "pa.ChunkedArray", name: str, option: str, where: str) -> "pa.Array":
    cells = plain(column, name, where)
    if cells.null_count:
        row = cells.is_null().to_pylist().index(True)
        raise DataError(
            f"{option}={name}: {where} has {cells.null_count} rows without a target (the first is row {row}); leave "
            "them out"
        )
    return cells


def _are_classes(numbers: np.ndarray | None) -> bool:
    if numbers is None:
        return True
    return bool((numbers == np.round(numbers)).all()) and len(np.unique(numbers)) <= _MOST


def _sorted(numbers: np.ndarray | None, cells: "pa.Array") -> list[str]:
    """Returns the classes of a column: whole numbers by size, and texts by their letters."""
    if numbers is None:
        return sorted(set(as_texts(cells)))
    return [written(number) for number in np.unique(numbers).tolist()]


def _named(numbers: np.ndarray | None, cells: "pa.Array", declared: Sequence[str] | None) -> list[str]:
    if declared is not None and numbers is not None:
        return [declared[int(k)] if 0 <= k < len(declared) else written(k) for k in numbers.tolist()]
    return list(as_texts(cells)) if numbers is None else [written(number) for number in numbers.tolist()]
