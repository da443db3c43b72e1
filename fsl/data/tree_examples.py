"""Examples of several inputs by name, as tokenizers and tables make them; sequences are padded to one length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.data.examples import Examples, tensor_from_array, tensor_to_array
from fsl.data.items import dense, input_tensor, length_of, target_tensor
from fsl.errors import DataError
from fsl.segments.tensor_trees import TensorTree, Values

_LEAST = 2  # places of a batch: a trace of two holds for any number, one of a single place may not
TARGETS = ("labels", "label", "targets", "target")


@checks_types(error=DataError)
@dataclass(frozen=True, eq=False)
class TreeExamples(Examples):
    """Examples in memory whose inputs are several tensors: `inputs[name]` (N, ...), and targets (N, ...).

    A model gets a batch by name, as `model(**batch)`, where its forward has these names, and else as one dict.
    `trimmed`: a batch ends with the last place that counts in one of its rows, as the input says whose name ends with
    mask; so its length goes by its rows alone, wherever they are computed.
    """

    draws: ClassVar[bool] = False

    inputs: Mapping[str, Tensor]
    targets: Tensor
    trimmed: bool = False

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError("the inputs are an empty dict; give a tensor for each input of the model")
        checked: dict[str, Tensor] = {}
        for name, given in (*self.inputs.items(), ("the targets", self.targets)):
            try:
                tensor = dense(given)
            except (TypeError, ValueError) as error:
                raise DataError(f"input '{name}' is a {type(given).__name__}: {error}") from error
            if not tensor.dim() or len(tensor) != len(self.targets):
                raise DataError(
                    f"input '{name}' has {len(tensor) if tensor.dim() else 'no'} rows, and there are "
                    f"{len(self.targets)} targets; give a row of each for every example"
                )
            checked[name] = tensor
        object.__setattr__(self, "targets", checked.pop("the targets"))
        object.__setattr__(self, "inputs", checked)
        masks = [tensor for name, tensor in checked.items() if name.endswith("mask") and tensor.dim() == 2]
        if self.trimmed and len(masks) != 1:
            raise DataError(
                f"the inputs {', '.join(checked)} have {len(masks)} masks (N, T), and batches that are trimmed need "
                "one to go by; give one whose name ends with mask"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row of the first input."""
        return tuple(next(iter(self.inputs.values())).shape[1:])

    def batch(self, indices: Tensor) -> tuple[Values, Tensor]:
        """Returns copies of the rows' inputs, as a tree, and targets."""
        inputs = {name: tensor.index_select(0, indices) for name, tensor in self.inputs.items()}
        targets = self.targets.index_select(0, indices)
        if self.trimmed and len(targets):
            mask = self._mask(inputs)
            counted = mask.ne(0).any(0).nonzero()
            length = max(_LEAST, int(counted[-1]) + 1 if len(counted) else 0)
            inputs = {
                name: tensor[:, :length].contiguous() if self._is_long(name, mask.shape[1]) else tensor
                for name, tensor in inputs.items()
            }
        return TensorTree.of(inputs), targets

    @staticmethod
    def _mask(inputs: Mapping[str, Tensor]) -> Tensor:
        return next(tensor for name, tensor in inputs.items() if name.endswith("mask") and tensor.dim() == 2)

    def _is_long(self, name: str, length: int) -> bool:
        """Returns whether an input has a place for each of the mask's."""
        return self.inputs[name].shape[1:2] == (length,)

    def blank(self, rows: int) -> Values:
        """Returns so many inputs of zeros; masks are of ones, so that something can be attended to."""
        return TensorTree.of(self._blank(rows))

    def _blank(self, rows: int) -> dict[str, Tensor]:
        return {
            name: (torch.ones if name.endswith("mask") else torch.zeros)(rows, *t.shape[1:], dtype=t.dtype)
            for name, t in self.inputs.items()
        }

    def of_one_length(self) -> "TreeExamples":
        """Returns the same examples, of which no batch is trimmed."""
        return replace(self, trimmed=False) if self.trimmed else self

    def shortest(self, rows: int) -> Values | None:
        """Returns blank inputs of the least length that a batch may have; None where all have one length."""
        if not self.trimmed:
            return None
        length = self._mask(self.inputs).shape[1]
        blank = self._blank(rows)
        return TensorTree.of({n: t[:, :_LEAST] if self._is_long(n, length) else t for n, t in blank.items()})

    def subset(self, indices: Tensor) -> "TreeExamples":
        """Returns a copy of these rows."""
        inputs = {name: tensor.index_select(0, indices) for name, tensor in self.inputs.items()}
        return TreeExamples(inputs, self.targets.index_select(0, indices), self.trimmed)

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = {name: tensor_to_array(tensor) for name, tensor in self.inputs.items()}
        return _restored, (arrays, tensor_to_array(self.targets), self.trimmed)


def _restored(
    inputs: Mapping[str, tuple[np.ndarray, torch.dtype]], targets: tuple[np.ndarray, torch.dtype], trimmed: bool
) -> TreeExamples:
    tensors = {name: tensor_from_array(*kept) for name, kept in inputs.items()}
    return TreeExamples(tensors, tensor_from_array(*targets), trimmed)


@checks_types(error=DataError)
def from_columns(
    columns: Mapping[str, Any], targets: Any, double: bool = False, padding: Mapping[str, float] | None = None
) -> TreeExamples:
    """Convert columns of equal length, by name, and targets; DataError for what holds no numbers.

    Sequences of different lengths are padded behind to the longest, with `padding[name]` or 0, where a column whose
    name ends with `mask` tells the model which places count.
    """
    padding = padding or {}
    masked = any(name.endswith("mask") for name in columns)
    if other := [name for name in padding if name not in columns]:
        raise DataError(f"padding is given for {', '.join(other)}, and there are the inputs {', '.join(columns)}")
    inputs = {name: _column(name, values, double, padding.get(name, 0), masked) for name, values in columns.items()}
    return TreeExamples(inputs, _column("targets", targets, double, -100, masked, target=True))


@checks_types(error=DataError)
def from_dicts(
    dataset: Any, double: bool = False, target: str | None = None, padding: Mapping[str, float] | None = None
) -> TreeExamples:
    """Convert a map-style Dataset, or a list, of dicts (or of pairs of a dict and a target).

    `target` names the key of the target; by default the one that is called labels, label, targets or target.
    """
    count = length_of(dataset)
    columns: dict[str, list[Any]] = {}
    targets: list[Any] = []
    for index in range(count):
        item, own = _item(dataset, index, target)
        if index == 0:
            columns = {name: [] for name in item}
        if item.keys() != columns.keys():
            raise DataError(
                f"item {index} of {type(dataset).__name__} has {', '.join(item)}, item 0 has {', '.join(columns)}; "
                "give every item the same keys"
            )
        for name, value in item.items():
            columns[name].append(value)
        targets.append(own)
    return from_columns(columns, targets, double, padding)


def _item(dataset: Any, index: int, target: str | None) -> tuple[dict[str, Any], Any]:
    try:
        item = dataset[index]
    except Exception as error:
        raise DataError(
            f"item {index} of {type(dataset).__name__} cannot be read ({error}); mend its __getitem__"
        ) from error
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Mapping):
        return dict(item[0]), item[1]
    if not isinstance(item, Mapping):
        raise DataError(
            f"item {index} of {type(dataset).__name__} is a {type(item).__name__}, item 0 is a dict; give one kind"
        )
    key = target or next((name for name in TARGETS if name in item), None)
    if key is None or key not in item:
        wanted = f"'{target}'" if target else f"one called {', '.join(TARGETS)}"
        raise DataError(
            f"item {index} of {type(dataset).__name__} has the keys {', '.join(item)}, and no target among them "
            f"({wanted}); name it, as fsl.data.from_dicts(data, target='answer')"
        )
    return {name: value for name, value in item.items() if name != key}, item[key]


def _column(name: str, values: Any, double: bool, padding: float, masked: bool, target: bool = False) -> Tensor:
    what = name if name == "targets" else f"input '{name}'"
    convert = target_tensor if target else input_tensor
    try:
        if isinstance(values, Tensor | np.ndarray):
            return convert(dense(values), double)
        rows = [dense(value) for value in values]
        longest = max((len(row) for row in rows if row.dim()), default=0)
        if any(row.dim() and len(row) != longest for row in rows):
            if not masked:
                raise ValueError(
                    f"its rows have from {min(len(row) for row in rows)} to {longest} values, and no input whose name "
                    "ends with mask says which places count; pad them, or give an attention_mask"
                )
            rows = [_padded(row, longest, padding) for row in rows]
        return convert(torch.stack(rows), double)
    except (TypeError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{what} cannot be stacked: {line}; leave it out, or give numbers of one shape") from error


def _padded(row: Tensor, length: int, value: float) -> Tensor:
    return torch.cat([row, row.new_full((length - len(row), *row.shape[1:]), value)])


def looks_named(data: Any) -> bool:
    """Returns whether the items of a Dataset or a list are dicts, or pairs of a dict and a target."""
    try:
        first = data[0]
    except Exception:
        return False
    return isinstance(first, Mapping) or (
        isinstance(first, Sequence) and not isinstance(first, str) and len(first) == 2 and isinstance(first[0], Mapping)
    )


def holds_numbers(data: Any) -> bool:
    """Returns whether the first item is a dict with a target among its keys, and numbers alone under the others."""
    try:
        item, _ = _item(data, 0, None)
        for value in item.values():
            dense(value)
    except (DataError, TypeError, ValueError):
        return False
    return bool(item)
