"""Converts a user's data to examples; takes what is unambiguous, and refuses the rest with a way out."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from fsl.argument_types import checks_types
from fsl.data.examples import DatasetExamples, Examples, TensorExamples
from fsl.data.items import Draws, dense, input_tensor, length_of, read_rows, target_tensor
from fsl.data.tree_examples import from_columns, from_dicts, holds_numbers, looks_named
from fsl.errors import DataError

log = logging.getLogger(__name__)

_PAIR = "give (inputs, targets) as two tensors or arrays, or a map-style Dataset of pairs"
_DRAWN = (
    "{} draws its items at random (a transform that augments, or noise): read once, each would stay as it was drawn "
    "first"
)


@checks_types(error=DataError)
def as_examples(data: Any, double: bool = False) -> Examples:
    """Convert a user's data: Examples, two tensors or arrays (inputs, targets), a map-style Dataset or list of pairs.

    Floats become float32; with `double`, for models of float64, float64 stays as it is.

    DataError for anything else, and for a Dataset that draws its items at random: reading it once or anew each time
    gives different results, and only its user knows which is meant.
    """
    if isinstance(data, Examples):
        return data.in_double() if double and isinstance(data, DatasetExamples) else data
    examples, drawn = _read(data, double)
    if drawn:
        raise DataError(
            f"{_DRAWN.format(type(data).__name__)}; give fsl.data.from_dataset(data, materialize=False) to draw anew "
            "each time, or fsl.data.from_dataset(data) to keep the first draw"
        )
    return examples


@checks_types(error=DataError, leave=("dataset",))
def from_dataset(dataset: Dataset[Any], materialize: bool = True, double: bool = False) -> Examples:
    """Convert a map-style Dataset of (input, target): floats become float32, integer targets int64.

    With `double`, for models of float64, float64 stays as it is.
    With `materialize` it reads all items once and keeps them as two tensors (the log says so where they were drawn at
    random); turn it off where a transform must draw anew each time. DataError where items are no pairs, fail, or differ
    in shape.
    """
    if not materialize and not _is_pair_of_arrays(dataset):
        _check_kind(dataset)
        return DatasetExamples(dataset, double=double)
    examples, drawn = _read(dataset, double)
    if drawn:
        log.warning("%s; materialize=False draws anew each time", _DRAWN.format(type(dataset).__name__))
    return examples


def _read(data: Any, double: bool) -> tuple[Examples, bool]:
    """Read a user's data into memory; returns the examples, and whether the items were drawn at random."""
    if _is_pair_of_arrays(data):
        return _from_arrays(data, double), False
    if _is_columns(data):
        return from_columns(data[0], data[1], double), False
    hugging_face = type(data).__module__.partition(".")[0] == "datasets"
    if (isinstance(data, Dataset | list) and looks_named(data)) or (hugging_face and holds_numbers(data)):
        return from_dicts(data, double), False
    _check_kind(data)
    found = _tensors(data)
    if found is not None:
        return _converted(*found, type(data).__name__, double), False
    count, draws = length_of(data), Draws()
    inputs, targets = read_rows(data, range(count), double)
    return TensorExamples(inputs, targets), draws.found(data, inputs, targets, double)


def _is_pair_of_arrays(data: Any) -> bool:
    """Returns whether data are two tensors or arrays (inputs, targets), the latter perhaps a list; not two items."""
    if not isinstance(data, tuple | list) or len(data) != 2 or not _is_array(data[0]):
        return False
    return _is_array(data[1]) or (isinstance(data[1], Sequence) and len(data[1]) == len(data[0]))


def _is_columns(data: Any) -> bool:
    """Returns whether data are a dict of arrays, by the names of the model's inputs, and targets."""
    if not isinstance(data, tuple | list) or len(data) != 2 or not isinstance(data[0], Mapping):
        return False
    return bool(data[0]) and all(_is_array(values) for values in data[0].values()) and not isinstance(data[1], Mapping)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


def _from_arrays(pair: Sequence[Any], double: bool) -> Examples:
    tensors = []
    for what, values in zip(("inputs", "targets"), pair):
        try:
            tensors.append(dense(values))
        except (TypeError, ValueError) as error:
            raise DataError(f"the {what} of (inputs, targets) are a {type(values).__name__}: {error}") from error
    return _converted(tensors[0], tensors[1], "(inputs, targets)", double)


def _converted(inputs: Tensor, targets: Tensor, name: str, double: bool) -> Examples:
    if not inputs.dim() or not len(inputs):
        raise DataError(f"{name} has no items; give some")
    try:
        return TensorExamples(input_tensor(inputs, double), target_tensor(targets, double))
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


def _tensors(dataset: Any) -> tuple[Tensor, Tensor] | None:
    """Returns inputs and targets of Datasets that hold them as tensors, as reading item by item would; else None."""
    if type(dataset) is TensorDataset:
        if len(dataset.tensors) != 2:
            raise DataError(
                f"TensorDataset of {len(dataset.tensors)} tensors, no pairs (input, target); give two: inputs that the "
                "model takes as one tensor, and targets"
            )
        try:
            return dense(dataset.tensors[0]), dense(dataset.tensors[1])
        except (TypeError, ValueError) as error:
            raise DataError(f"a tensor of TensorDataset cannot be used: {error}") from error
    if type(dataset) is Subset and (whole := _tensors(dataset.dataset)) is not None:
        rows = torch.as_tensor(dataset.indices, dtype=torch.int64)
        if len(rows) and not (-len(whole[0]) <= int(rows.min()) and int(rows.max()) < len(whole[0])):
            return None  # item by item names the fault
        return whole[0][rows], whole[1][rows]
    if type(dataset) is ConcatDataset:
        parts = [_tensors(part) for part in dataset.datasets]
        shapes = {(a.shape[1:], a.dtype, b.shape[1:], b.dtype) for a, b in (part for part in parts if part is not None)}
        if None not in parts and len(shapes) == 1:
            return tuple(torch.cat(each) for each in zip(*(part for part in parts if part is not None)))  # type: ignore[return-value]
    return None


def _check_kind(data: Any) -> None:
    """Raise DataError, with the most likely reason, for what is no map-style Dataset or list of pairs."""
    name, package = type(data).__name__, type(data).__module__.partition(".")[0]
    if isinstance(data, type):
        raise DataError(f"the class {data.__name__} is no data; give an object of it")
    if isinstance(data, DataLoader):
        raise DataError(
            "a DataLoader's batch size, order and collate_fn would be ignored; give its dataset (loader.dataset), and "
            "batch_size= beside it"
        )
    if isinstance(data, IterableDataset) or (package == "datasets" and name.startswith("Iterable")):
        raise DataError(
            f"{name} is read in one order only, and devices read rows by index; give a map-style Dataset, or its items "
            "as a list: list(data)"
        )
    if package == "datasets" and isinstance(data, dict):
        raise DataError(f"{name} holds several splits ({', '.join(map(str, data))}); give them one by one, as arrays")
    if package == "datasets":
        columns = list(getattr(data, "column_names", ()))
        one, other = columns[:2] if len(columns) > 1 else ("inputs", "labels")
        raise DataError(
            f"the items of a Dataset of Hugging Face are dicts (columns: {', '.join(columns)}), no pairs; with data = "
            f"data.with_format('torch') give (data[{one!r}][:], data[{other!r}][:]), or use fsl.data.images for images"
        )
    if package in ("pandas", "polars"):
        raise DataError(
            f"{name} does not say which columns are inputs; give two arrays, as (frame[['a', 'b']].to_numpy(), "
            "frame['label'].to_numpy())"
        )
    if isinstance(data, Tensor | np.ndarray):
        raise DataError(f"{name} has no targets beside its inputs; {_PAIR}")
    if isinstance(data, str | bytes) or hasattr(data, "__fspath__"):
        raise DataError(f"{data!r} is a name, no data; {_PAIR}, or read images with fsl.data.images(path=...)")
    if isinstance(data, dict | set | frozenset) or not hasattr(data, "__getitem__"):
        raise DataError(f"{name} cannot be read row by row; {_PAIR}")
    if isinstance(data, tuple) and len(data) == 2 and all(_is_pair_of_arrays(each) for each in data):
        shapes = [np.shape(targets)[:1] == np.shape(inputs)[:1] for inputs, targets in data]
        if all(shapes):
            raise DataError(
                "two pairs of arrays look like training and test data; give them one by one, as train_data=(inputs, "
                "targets), test_data=(inputs, targets)"
            )
