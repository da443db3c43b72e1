"""Sets of examples, read by index."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from fsl.errors import DataError


class Examples(ABC):
    """A set of inputs with targets. `targets` has one row per example: class labels (N,) int64, or (N, ...)."""

    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""

    @abstractmethod
    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, ...) and targets (B, ...) of these rows (int64, (B,)), in memory of their own."""

    @abstractmethod
    def subset(self, indices: Tensor) -> "Examples":
        """These rows as a set of their own."""


@dataclass(frozen=True, eq=False)
class TensorExamples(Examples):
    """Examples in memory: inputs (N, ...), normalised already, and targets (N, ...)."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise DataError(f"there are {len(self.inputs)} inputs and {len(self.targets)} targets; give one for each")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.inputs.shape[1:])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Two gathers."""
        return self.inputs.index_select(0, indices), self.targets.index_select(0, indices)

    def subset(self, indices: Tensor) -> "TensorExamples":
        """A copy of these rows."""
        return TensorExamples(*self.batch(indices))

    def __reduce__(self) -> tuple[Any, ...]:
        # As NumPy arrays, which pickle out of band: Ray's object store then hands every node the same memory.
        return _from_arrays, (self.inputs.numpy(), self.targets.numpy())


def _from_arrays(inputs: np.ndarray, targets: np.ndarray) -> TensorExamples:
    with warnings.catch_warnings():
        # Memory from an object store is read-only; examples are only ever read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return TensorExamples(torch.from_numpy(inputs), torch.from_numpy(targets))


class DatasetExamples(Examples):
    """A user's Dataset as it is, for one whose transforms are random: items are fetched batch by batch."""

    def __init__(self, dataset: Dataset[Any], targets: Tensor | None = None):
        self.dataset = dataset
        self.targets = (
            torch.stack([torch.as_tensor(pair[1]) for pair in _pairs(dataset)]) if targets is None else targets
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(torch.as_tensor(self.dataset[0][0]).shape)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The items, collated."""
        inputs, targets = default_collate([self.dataset[int(i)] for i in indices])
        return inputs, targets

    def subset(self, indices: Tensor) -> "DatasetExamples":
        """The same dataset with these rows alone."""
        rows: Sequence[int] = indices.tolist()
        return DatasetExamples(torch.utils.data.Subset(self.dataset, rows), self.targets[indices])


def from_dataset(dataset: Dataset[Any], materialize: bool = True) -> Examples:
    """A map-style Dataset of (input, target) as examples.

    With `materialize` its items are read once and kept as two tensors; turn it off where a transform draws anew
    each time. DataError where items are no pairs, or differ in shape.
    """
    if not materialize:
        return DatasetExamples(dataset)
    try:
        inputs, targets = default_collate(list(_pairs(dataset)))
    except (RuntimeError, TypeError) as error:
        line = " ".join(str(error).split())
        raise DataError(
            f"the items of {type(dataset).__name__} cannot be stacked ({line}); give inputs of one shape as tensors or "
            "arrays, and numbers or tensors as targets"
        ) from None
    return TensorExamples(inputs, targets)


def _pairs(dataset: Dataset[Any]) -> list[tuple[Any, Any]]:
    length = getattr(dataset, "__len__", None)
    if length is None or not length():
        raise DataError(f"{type(dataset).__name__} has no length or no items; give a map-style Dataset with some")
    pairs = [dataset[i] for i in range(length())]
    if not isinstance(pairs[0], tuple | list) or len(pairs[0]) != 2:
        raise DataError(f"an item of {type(dataset).__name__} is no pair (input, target); its items have no labels")
    return pairs
