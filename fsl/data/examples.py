"""Sets of examples, read by index."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from fsl.errors import DataError


class Examples(ABC):
    """A set of inputs with targets. `targets` has one row per example: class labels (N,) int64, or (N, ...)."""

    draws: ClassVar[bool] = True  # reading a row may draw random numbers

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

    draws: ClassVar[bool] = False

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
        if targets is None:
            targets = _target_tensor(_stacked((target for _, target in _pairs(dataset)), "targets", dataset))
        self.targets = targets

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.batch(torch.zeros(1, dtype=torch.int64))[0].shape[1:])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The items, collated; DataError where they cannot be."""
        return _collated((self.dataset[i] for i in indices.tolist()), self.dataset)

    def subset(self, indices: Tensor) -> "DatasetExamples":
        """The same dataset with these rows alone."""
        return DatasetExamples(Subset(self.dataset, indices.tolist()), self.targets[indices])


def from_dataset(dataset: Dataset[Any], materialize: bool = True) -> Examples:
    """A map-style Dataset of (input, target) as examples: float64 becomes float32, integer targets int64.

    With `materialize` its items are read once and kept as two tensors; turn it off where a transform draws anew
    each time. DataError where items are no pairs, or cannot be stacked because they differ in shape.
    """
    return TensorExamples(*_collated(_pairs(dataset), dataset)) if materialize else DatasetExamples(dataset)


def _pairs(dataset: Dataset[Any]) -> Iterator[tuple[Any, Any]]:
    length = getattr(dataset, "__len__", None)
    if length is None or not length():
        raise DataError(f"{type(dataset).__name__} has no length or no items; give a map-style Dataset with some")
    for index in range(length()):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"item {index} of {type(dataset).__name__} is a {type(item).__name__}, no pair (input, target); give "
                "a Dataset whose items carry their labels"
            )
        yield item[0], item[1]


def _collated(items: Iterable[tuple[Any, Any]], dataset: Dataset[Any]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*items)
    stacked = _stacked(inputs, "inputs", dataset)
    stacked = stacked.float() if stacked.dtype == torch.float64 else stacked
    return stacked, _target_tensor(_stacked(targets, "targets", dataset))


def _stacked(values: Iterable[Any], what: str, dataset: Dataset[Any]) -> Tensor:
    try:
        stacked = default_collate(list(values))
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
    else:
        if isinstance(stacked, Tensor):
            return stacked
        reason = f"they collate to a {type(stacked).__name__}"
    raise DataError(
        f"the {what} of {type(dataset).__name__} cannot be stacked ({reason}); give inputs of one shape as tensors or "
        "arrays, and numbers or tensors as targets"
    )


def _target_tensor(targets: Tensor) -> Tensor:
    """As torch's losses want them: class indices int64, and what is measured in the model's float32."""
    if targets.dtype == torch.float64:
        return targets.float()
    return targets if targets.is_floating_point() or targets.dtype == torch.bool else targets.long()
