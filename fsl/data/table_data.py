"""Loads tables: CSV, Parquet and JSON-lines files, DataFrames."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from fsl.argument_types import checks_types
from fsl.data.cells import MISSING
from fsl.data.examples import Examples, TensorExamples
from fsl.data.rows_for_tests import refuse_no_rows
from fsl.data.table_files import column_of, read_splits
from fsl.data.table_recipe import Choice, Encoding, Missing, TableRecipe
from fsl.data.table_rows import groups_of, held_out
from fsl.data.target_columns import TargetColumn, Task
from fsl.data.task import TaskData
from fsl.data.tree_examples import TreeExamples
from fsl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)


@checks_types("data.", DataError)
def from_table(
    path: Any = None,
    target: str | None = None,
    test_path: Any = None,
    columns: list[str] | None = None,
    ignore: list[str] | None = None,
    categorical: list[str] | None = None,
    encoding: Encoding = "onehot",
    standardise: bool = True,
    missing: Missing = "refuse",
    na: list[str] | None = None,
    task: Task = "auto",
    classes: list[str] | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    test_share: float = 0.2,
    recipe: str | None = None,
) -> TaskData:
    """Load a table whose column `target` is to be predicted from the others.

    `path` is a .csv, .parquet or .jsonl file, a folder with train.* and test.* (or validation.*), a DataFrame, or an
    Arrow table; `test_path` another of these, with the test rows. Without test rows, `test_share` of the rows are held
    out (of each class), the same whatever the seed.

    Inputs are all other columns, or `columns`, less `ignore`: numbers where every cell is one, categories else, and
    where `categorical` says so. Numbers have the training rows' mean taken off and are divided by their deviation,
    unless `standardise=False`. Categories become a number each, 1 in the rows that have it (`onehot`), or one whole
    number a column (`codes`): then the model gets `numbers` (B, F) and `codes` (B, C), 0 for a category that is missing
    or that no training row has. Missing cells (empty, or one of `na`) are refused, filled (the training rows' mean, no
    category), or their rows dropped. Targets: see `fsl.data.target_columns.TargetColumn`; a regression's are
    (N, 1), as they are.

    `recipe` is `TaskData.recipe` of an earlier call: columns, statistics and categories are then those, and nothing is
    taken from these rows. `limit` and `test_limit` take the first rows; `group_column` has natural ids, and is no
    input. DataError for a table that cannot be used.
    """
    for option, value in (("path", path), ("target", target)):
        if value is None:
            raise DataError(f"data.{option} must be given: data=table data.path=adult.csv data.target=income")
    assert target is not None
    refuse_no_rows(limit, test_limit)
    train, test, name = read_splits(path, test_path)
    where = str(path) if isinstance(path, str | Path) else name
    others = [target, *([] if group_column is None else [group_column])]
    if group_column is not None:
        column_of(train, group_column, "data.group_column", where)
    column = column_of(train, target, "data.target", where)
    known = None if recipe is None else TableRecipe.read(recipe)
    of_task = task if known is None else known.task
    aims = TargetColumn.of(column, target, "data.target", where, of_task, classes)
    choice = Choice(
        None if columns is None else tuple(columns),
        tuple(ignore or ()),
        tuple(categorical or ()),
        encoding,
        standardise,
        missing,
        tuple(MISSING if na is None else ("", *na)),
    )
    kind: Literal["classification", "regression"] = "regression" if aims.names is None else "classification"
    plan = choice.plan(train, others, where, kind, test is not None) if known is None else known
    train, test = _complete(plan, train, test, aims, test_share, where)
    train, test = train.slice(0, limit), test.slice(0, test_limit)
    used = choice.fitted(plan, train, where) if known is None else known
    return TaskData(
        name,
        _examples(used, train, aims, where),
        _examples(used, test, aims, f"the test rows of {where}"),
        None if aims.names is None else len(aims.names),
        groups=groups_of(train, group_column, where),
        class_names=aims.names,
        scaled=recipe is None,
        recipe=used.written(),
    )


def _complete(
    plan: TableRecipe, train: "pa.Table", test: "pa.Table | None", aims: TargetColumn, share: float, where: str
) -> "tuple[pa.Table, pa.Table]":
    """Returns the training and test rows that count; DataError where a recipe is of data of another form."""
    if plan.own_test != (test is not None):
        which = "the run's data have" if plan.own_test else "the run's data do not have"
        raise DataError(
            f"{where}: {which} test rows in a file of their own; give data of the same form, train.* and test.*"
        )
    train = plan.complete(train, where)
    if test is None:
        return held_out(train, aims, share, where)
    return train, plan.complete(test, f"the test rows of {where}")


def _examples(recipe: TableRecipe, table: "pa.Table", aims: TargetColumn, where: str) -> Examples:
    inputs: dict[str, Tensor] = recipe.inputs(table, where)
    targets = aims.read(column_of(table, aims.column, "data.target", where), where)
    return TreeExamples(inputs, targets) if recipe.encoding == "codes" else TensorExamples(inputs["numbers"], targets)
