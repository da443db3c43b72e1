"""Loads texts with labels, from files or from the Hub, as ids for models of Hugging Face."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import torch

from fsl.argument_types import checks_types
from fsl.data.cells import is_text
from fsl.data.loaders import open_hub, train_and_test
from fsl.data.rows_for_tests import refuse_no_rows
from fsl.data.table_files import column_of, listed, read_splits
from fsl.data.table_rows import groups_of, held_out
from fsl.data.target_columns import TargetColumn, Task
from fsl.data.task import TaskData
from fsl.data.text_tokens import Tokenizer, refuse_other
from fsl.data.tree_examples import TreeExamples
from fsl.errors import DataError, one_of

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

Padding = Literal["longest", "fixed", "batch"]


@dataclass(frozen=True)
class TextRecipe:
    """How texts become ids; the same for every part of a run."""

    kind: Literal["text"]
    tokenizer: str  # its digest
    texts: int  # columns
    length: int  # tokens of a row, with padding
    padding: Padding
    task: Literal["classification", "regression"]
    own_test: bool  # whether test rows come from a file or split of their own

    @staticmethod
    def read(text: str) -> "TextRecipe":
        """Read a recipe from JSON; DataError for anything else."""
        try:
            return msgspec.json.decode(text, type=TextRecipe)
        except msgspec.MsgspecError as error:
            raise DataError(f"data.recipe is no recipe of texts ({error}); give TaskData.recipe of from_text") from None


@checks_types("data.", DataError)
def from_text(
    path: Any = None,
    name: str | None = None,
    subset: str | None = None,
    tokenizer: str | None = None,
    text_column: str | list[str] | None = None,
    label_column: str = "label",
    max_length: int = 128,
    padding: Padding = "longest",
    test_path: Any = None,
    test_split: str | None = None,
    task: Task = "auto",
    classes: list[str] | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    test_share: float = 0.2,
    recipe: str | None = None,
) -> TaskData:
    """Load texts with labels: inputs `input_ids` and `attention_mask`, int64 (N, T), by a tokenizer of Hugging Face.

    `path` is a .csv, .parquet or .jsonl file, a folder with train.* and test.* (or validation.*), a DataFrame or an
    Arrow table; `name` a data set on the Hub instead. `tokenizer` is a folder or a name on the Hub. `text_column` is
    found where only one column has texts; two make pairs, with `token_type_ids` where the tokenizer has them. Labels:
    see `fsl.data.target_columns.TargetColumn`.

    Rows are cut at `max_length` tokens, and padded behind: to the longest of all rows (`longest`), to `max_length`
    (`fixed`), or each batch to its own longest row (`batch`), which strategies that pool devices' rows cannot take.
    Without test rows, `test_share` of the rows are held out (of each class), the same whatever the seed.

    `recipe` is `TaskData.recipe` of an earlier call: DataError where these data would be prepared in another way.
    """
    one_of("data.padding", padding, get_args(Padding))
    if (path is None) == (name is None):
        raise DataError("data.path (a file, or a folder) or data.name (on the Hub) must be given, and not both")
    if max_length < 2:
        raise DataError(f"data.max_length={max_length}: give at least 2 tokens")
    refuse_no_rows(limit, test_limit)
    found = Tokenizer.load(tokenizer)
    train, test, title = _rows(path, name, subset, test_path, test_split)
    where = str(path if isinstance(path, str) else name or title)
    declared = _declared(train, label_column)
    column = column_of(train, label_column, "data.label_column", where)
    known = None if recipe is None else TextRecipe.read(recipe)
    of_task = task if known is None else known.task
    aims = TargetColumn.of(column, label_column, "data.label_column", where, of_task, classes, declared)
    own_test = test is not None
    if test is None:
        train, test = held_out(train, aims, test_share, where, declared)
    parts = {where: train.slice(0, limit), f"the test rows of {where}": test.slice(0, test_limit)}
    columns = _text_columns(train, text_column, [label_column, *([group_column] if group_column else [])], where)
    texts = {place: [_texts(part, each, place) for each in columns] for place, part in parts.items()}
    length = max_length
    if known is not None:
        length, padding = known.length, known.padding
    elif padding != "fixed":
        length = max(found.longest(each, max_length) for each in texts.values())
    kind: Literal["classification", "regression"] = "regression" if aims.names is None else "classification"
    own = TextRecipe("text", found.digest, len(columns), length, padding, kind, own_test)
    if known is not None:
        refuse_other(asdict(known), asdict(own), where)
    examples = [
        TreeExamples(
            {key: torch.from_numpy(ids) for key, ids in found.columns(texts[place], length, place).items()},
            aims.read(part.column(label_column), place, declared),
            trimmed=padding == "batch",
        )
        for place, part in parts.items()
    ]
    count = None if aims.names is None else len(aims.names)
    return TaskData(
        title,
        examples[0],
        examples[1],
        count,
        groups=groups_of(parts[where], group_column, where),
        class_names=aims.names,
        recipe=msgspec.json.encode(own).decode(),
    )


def _rows(
    path: Any, name: str | None, subset: str | None, test_path: Any, test_split: str | None
) -> "tuple[pa.Table, pa.Table | None, str]":
    if name is None:
        for option, value in (("subset", subset), ("test_split", test_split)):
            if value is not None:
                raise DataError(f"data.{option}={value}: files have none; leave it out, or give data.name")
        return read_splits(path, test_path)
    if test_path is not None:
        raise DataError(f"data.test_path={test_path}: a data set on the Hub has splits; name one with data.test_split")
    train, test = train_and_test(open_hub(name, subset), test_split, name)
    tables = [None if rows is None else rows.with_format("arrow")[:] for rows in (train, test)]
    return tables[0], tables[1], name.rpartition("/")[2]


def _declared(table: "pa.Table", label: str) -> list[str] | None:
    """Returns what a column's whole numbers are called, where `datasets` wrote it down in the file."""
    said = (table.schema.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(said)["info"]["features"][label] if said else {}
    except (ValueError, KeyError, TypeError):
        return None
    names = feature.get("names") if isinstance(feature, dict) else None
    return names if isinstance(names, list) and all(isinstance(each, str) for each in names) else None


def _text_columns(table: "pa.Table", given: str | Sequence[str] | None, others: Sequence[str], where: str) -> list[str]:
    if given is not None:
        names = [given] if isinstance(given, str) else list(given)
        if not 1 <= len(names) <= 2:
            raise DataError(f"data.text_column={names}: one column of texts, or two for pairs")
        for name in names:
            column_of(table, name, "data.text_column", where)
        return names
    found = [each.name for each in table.schema if is_text(each.type) and each.name not in others]
    if len(found) != 1:
        raise DataError(
            f"{where} has {'several columns' if found else 'no column'} of texts (it has "
            f"{listed(table.column_names)}); name one with data.text_column"
        )
    return found


def _texts(table: "pa.Table", name: str, where: str) -> list[str]:
    column = column_of(table, name, "data.text_column", where)
    if not is_text(column.type):
        raise DataError(f"data.text_column={name}: the column of {where} holds {column.type}, no texts; name another")
    texts: list[Any] = column.to_pylist()
    for row, text in enumerate(texts):
        if text is None or not text.strip():
            raise DataError(f"data.text_column={name}: row {row} of {where} has no text; leave such rows out")
    return texts
