"""Reads sets of examples by index."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from fsl.argument_types import checks_types
from fsl.data.items import Column, dense, length_of, read_items, read_rows, shared_tensor
from fsl.errors import DataError
from fsl.segments.tensor_trees import Values


class Examples(ABC):
    """A set of inputs with targets. `targets` has one row per example: class labels (N,) int64, or (N, ...)."""

    draws: ClassVar[bool] = True  # reading a row may draw random numbers

    targets: Tensor
    trimmed: bool = False  # batches end with their own longest row

    def __len__(self) -> int:
        return len(self.targets)

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @abstractmethod
    def batch(self, indices: Tensor) -> tuple[Any, Tensor]:
        """Returns copies of inputs (B, ...), a tensor or a `TensorTree`, and targets of these rows (int64, (B,))."""

    def blank(self, rows: int) -> Values:
        """Returns so many inputs of zeros, of the shape and dtype that inputs have."""
        dtype = self.batch(torch.arange(min(1, len(self))))[0].dtype
        return torch.zeros(rows, *self.input_shape, dtype=dtype)

    def of_one_length(self) -> "Examples":
        """Returns the same examples, whose batches all have the length of the longest row."""
        return self

    @abstractmethod
    def subset(self, indices: Tensor) -> "Examples":
        """Returns these rows as a set of their own."""


@dataclass(frozen=True, eq=False)
class TensorExamples(Examples):
    """Examples in memory: normalised inputs (N, ...), and targets (N, ...)."""

    draws: ClassVar[bool] = False

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            try:
                tensor = dense(getattr(self, name))
            except (TypeError, ValueError) as error:
                raise DataError(f"the {name} are a {type(getattr(self, name)).__name__}: {error}") from error
            if not tensor.dim():
                raise DataError(f"the {name} are one number, {tensor.item()}; give a tensor with a row per example")
            object.__setattr__(self, name, tensor)
        if len(self.inputs) != len(self.targets):
            raise DataError(f"there are {len(self.inputs)} inputs and {len(self.targets)} targets; give one for each")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns copies of the rows' inputs and targets, by two gathers."""
        return self.inputs.index_select(0, indices), self.targets.index_select(0, indices)

    def subset(self, indices: Tensor) -> "TensorExamples":
        """Returns a copy of these rows."""
        return TensorExamples(*self.batch(indices))

    def __reduce__(self) -> tuple[Any, ...]:
        # As NumPy arrays, which pickle out of band: Ray's object store then gives every node the same memory.
        return _from_arrays, (*tensor_to_array(self.inputs), *tensor_to_array(self.targets))


def tensor_to_array(tensor: Tensor) -> tuple[np.ndarray, torch.dtype]:
    """Returns a tensor as an array, and its dtype: arrays pickle out of band."""
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16
        return tensor.view(torch.int16).numpy(), tensor.dtype
    return tensor.numpy(), tensor.dtype


def tensor_from_array(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Returns the tensor that `tensor_to_array` took apart, on the array's memory."""
    return shared_tensor(array).view(dtype)


def _from_arrays(
    inputs: np.ndarray, input_dtype: torch.dtype, targets: np.ndarray, target_dtype: torch.dtype
) -> TensorExamples:
    return TensorExamples(tensor_from_array(inputs, input_dtype), tensor_from_array(targets, target_dtype))


class DatasetExamples(Examples):
    """A user's Dataset as it is, for random transforms: it fetches items anew for each batch.

    Floats become float32; with `double`, float64 stays as it is.
    """

    @checks_types(error=DataError, leave=("dataset",))
    def __init__(self, dataset: Dataset[Any], targets: Tensor | None = None, double: bool = False):
        self.dataset = dataset
        self.double = double
        self.targets = _read_targets(dataset, double) if targets is None else targets

    def in_double(self) -> "DatasetExamples":
        """Returns the same examples with float64 kept; reads numeric targets anew."""
        targets = None if self.targets.is_floating_point() else self.targets
        return self if self.double else DatasetExamples(self.dataset, targets, double=True)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.batch(torch.zeros(1, dtype=torch.int64))[0].shape[1:])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Fetch and stack the items; DataError where they differ in shape or fail."""
        return read_rows(self.dataset, indices.tolist(), self.double)

    def subset(self, indices: Tensor) -> "DatasetExamples":
        """Returns the same dataset with these rows alone."""
        return DatasetExamples(Subset(self.dataset, indices.tolist()), self.targets[indices], self.double)


def _read_targets(dataset: Dataset[Any], double: bool) -> Tensor:
    """Read all targets item by item, and check that all inputs are alike on the way."""
    count = length_of(dataset)
    inputs, targets = Column("input", dataset, 1, double), Column("target", dataset, count, double)
    for index, value, target in read_items(dataset, range(count)):
        inputs.check(index, value)
        targets.add(index, target)
    return targets.tensor
