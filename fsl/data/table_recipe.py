"""How a table's columns become inputs: decided once, by training rows, and the same for every other table."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import msgspec
import numpy as np
import torch
from torch import Tensor

from fsl.data.cells import as_numbers, as_texts, first_text, plain
from fsl.data.table_files import column_of, listed
from fsl.errors import DataError, one_of

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

Missing = Literal["refuse", "fill", "drop"]
Encoding = Literal["onehot", "codes"]
Task = Literal["classification", "regression"]
_MOST = 1000  # categories of a column: more are ids, names or free text


@dataclass(frozen=True)
class InputColumn:
    """One column: a number, minus `mean` over `std`, or a category, one of `values`.

    A missing number becomes `mean` where missing values are filled; a missing category is none of `values`.
    """

    name: str
    values: tuple[str, ...] | None = None
    mean: float = 0.0
    std: float = 1.0
    fill: float = 0.0

    def numbers(self, cells: "pa.Array", where: str) -> np.ndarray:
        """Returns standardised numbers float32 (N,); DataError for texts, and for numbers that are not finite."""
        found = as_numbers(cells)
        if found is None:
            row, text = first_text(cells)
            what = "no values at all" if cells.null_count == len(cells) else f"'{text[:60]}' in row {row}"
            raise DataError(
                f"column '{self.name}' of {where} is one of numbers, and has {what}; mend it, or make it categorical "
                f"with data.categorical=[{self.name}]"
            )
        found = np.where(np.isnan(found), self.fill, found)
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found))[0])
            raise DataError(
                f"column '{self.name}' of {where} has {found[row]} in row {row}; replace it, or leave it out"
            )
        return ((found - self.mean) / self.std).astype(np.float32)

    def codes(self, cells: "pa.Array", where: str) -> np.ndarray:
        """Returns int64 (N,): k + 1 for `values[k]`, and 0 for a missing value and one that training rows have not."""
        assert self.values is not None
        index = {value: k + 1 for k, value in enumerate(self.values)}
        texts = as_texts(cells)
        codes = np.array([index.get(text, 0) for text in texts], dtype=np.int64)
        unseen = (codes == 0) & np.array([text is not None for text in texts])
        if unseen.any():
            shown = listed(sorted(set(texts[unseen])), 5)
            if unseen.sum() + cells.null_count == len(codes):
                raise DataError(
                    f"column '{self.name}' of {where} has none of the categories that it was prepared for ({shown}, "
                    f"in place of {listed(self.values, 5)}); give data of the same kind"
                )
            log.warning(
                "column '%s' of %s has %d rows of categories that the training rows have not, which count as none of "
                "them: %s",
                *(self.name, where, int(unseen.sum()), shown),
            )
        return codes


@dataclass(frozen=True)
class TableRecipe:
    """What turns rows of a table into inputs: columns in order, and what to do with missing values."""

    kind: Literal["table"]
    columns: tuple[InputColumn, ...]
    missing: Missing
    na: tuple[str, ...]  # texts that stand for a missing value
    encoding: Encoding
    task: Task
    own_test: bool  # whether test rows come from a file of their own

    @staticmethod
    def read(text: str) -> "TableRecipe":
        """Read the recipe that `written` wrote; DataError for anything else."""
        try:
            return msgspec.json.decode(text, type=TableRecipe)
        except msgspec.MsgspecError as error:
            raise DataError(
                f"data.recipe is no recipe of a table ({error}); give TaskData.recipe of from_table"
            ) from None

    def written(self) -> str:
        """The recipe as JSON; numbers keep every bit."""
        return msgspec.json.encode(self).decode()

    def cells(self, table: "pa.Table", where: str) -> "dict[str, pa.Array]":
        """Returns the cells of each column; DataError for one that the table lacks."""
        return {
            each.name: plain(column_of(table, each.name, "data.columns", where), each.name, where, self.na)
            for each in self.columns
        }

    def complete(self, table: "pa.Table", where: str) -> "pa.Table":
        """Returns the rows that count: all, or those without missing values; DataError where these are refused."""
        if self.missing == "fill":
            return table
        cells = self.cells(table, where)
        gaps = {name: np.asarray(each.is_null()) for name, each in cells.items() if each.null_count}
        if not gaps:
            return table
        if self.missing == "refuse":
            shown = listed([f"{name} ({int(rows.sum())})" for name, rows in gaps.items()], 5)
            name, rows = next(iter(gaps.items()))
            raise DataError(
                f"{where} has missing values: {shown}; the first of '{name}' is in row "
                f"{int(np.flatnonzero(rows)[0])}: "
                "data.missing=fill puts the training rows' mean for numbers and no category for texts, "
                "data.missing=drop leaves these rows out"
            )
        kept = ~np.any(list(gaps.values()), axis=0)
        if not kept.any():
            raise DataError(
                f"data.missing=drop: every row of {where} has missing values; leave columns out: {', '.join(gaps)}"
            )
        log.warning("data.missing=drop: %d of %d rows of %s are left out", int((~kept).sum()), len(kept), where)
        return table.take(np.flatnonzero(kept))

    def inputs(self, table: "pa.Table", where: str) -> dict[str, Tensor]:
        """Returns `numbers` float32 (N, F), all inputs side by side; with codes, beside them `codes` int64 (N, C)."""
        cells = self.cells(table, where)
        parts: list[np.ndarray] = []
        codes: list[np.ndarray] = []
        for column in self.columns:
            if column.values is None:
                parts.append(column.numbers(cells[column.name], where)[:, None])
                continue
            found = column.codes(cells[column.name], where)
            if self.encoding == "codes":
                codes.append(found[:, None])
            else:  # a row of zeros for code 0
                parts.append(np.eye(len(column.values) + 1, dtype=np.float32)[found][:, 1:])
        blocks = {"numbers": parts, "codes": codes}
        return {name: torch.from_numpy(np.concatenate(block, axis=1)) for name, block in blocks.items() if block}


@dataclass(frozen=True)
class Choice:
    """What a user says of the columns; the rest is decided by the training rows."""

    columns: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    encoding: Encoding = "onehot"
    standardise: bool = True
    missing: Missing = "refuse"
    na: tuple[str, ...] = ()

    def names(self, table: "pa.Table", others: Sequence[str], where: str) -> list[str]:
        """Returns the input columns in the table's order; DataError for names that it has not."""
        for option in ("columns", "ignore", "categorical"):
            for name in getattr(self, option) or ():
                column_of(table, name, f"data.{option}", where)
                if name in others and option != "ignore":
                    raise DataError(f"data.{option}={name}: that is the target or the group, no input; leave it out")
        wanted = table.column_names if self.columns is None else self.columns
        names = [name for name in table.column_names if name in wanted and name not in (*self.ignore, *others)]
        if not names:
            raise DataError(f"{where} has no input column besides {listed(others)}; give data.columns, or other data")
        if other := [name for name in self.categorical if name not in names]:
            raise DataError(f"data.categorical={other[0]}: that column is left out; take it out of data.ignore")
        return names

    def plan(self, table: "pa.Table", others: Sequence[str], where: str, task: Task, own_test: bool) -> TableRecipe:
        """Returns a recipe whose columns have names alone; `others` are the target and the group."""
        for option, value, allowed in (("missing", self.missing, Missing), ("encoding", self.encoding, Encoding)):
            one_of(f"data.{option}", value, get_args(allowed))
        columns = tuple(map(InputColumn, self.names(table, others, where)))
        return TableRecipe("table", columns, self.missing, self.na, self.encoding, task, own_test)

    def fitted(self, plan: TableRecipe, train: "pa.Table", where: str) -> TableRecipe:
        """Returns the recipe with what the training rows say of each column, and logs it."""
        cells = plan.cells(train, where)
        found = tuple(self._fitted(column.name, cells[column.name], where) for column in plan.columns)
        numbers = [column.name for column in found if column.values is None]
        categories = [f"{column.name} ({len(column.values)})" for column in found if column.values is not None]
        log.info("%s: numbers %s; categories %s", where, listed(numbers) or "none", listed(categories) or "none")
        return replace(plan, columns=found)

    def _fitted(self, name: str, cells: "pa.Array", where: str) -> InputColumn:
        if cells.null_count == len(cells):
            raise DataError(f"column '{name}' of {where} has no values; leave it out with data.ignore=[{name}]")
        numbers = None if name in self.categorical else as_numbers(cells)
        if numbers is None:
            values = sorted({text for text in as_texts(cells) if text is not None})
            if len(values) > _MOST:
                raise DataError(
                    f"column '{name}' of {where} has {len(values)} different texts ({listed(values, 3)}), and at most "
                    f"{_MOST} are categories; leave ids and free text out with data.ignore=[{name}]"
                )
            return InputColumn(name, tuple(values))
        known = numbers[~np.isnan(numbers)]
        if not np.isfinite(known).all():
            return InputColumn(name)  # `numbers` refuses it, with the row
        mean, std = float(known.mean()), float(known.std())
        if std == 0:
            log.warning("column '%s' of %s is %g in all training rows, and tells a model nothing", name, where, mean)
        if not self.standardise:
            return InputColumn(name, fill=mean)
        return InputColumn(name, None, mean, std or 1.0, mean)
