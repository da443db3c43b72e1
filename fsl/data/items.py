"""Reads the items of a user's Dataset, checks them, and stacks them."""

import random
import sysconfig
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from numbers import Number
from os import sep
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from fsl.errors import DataError
from fsl.faults import said

_FOLDERS = {*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(Path(__file__).parents[1])}
_ELSEWHERE = tuple(f"{folder}{sep}" for folder in _FOLDERS)  # paths of code that is not the user's
_COMPARED = 16  # items that it reads twice: a flip with chance 1/2 goes unseen in one of 65,536 sets
_COMPARED_MORE = 256  # where the process's generators moved during the first reading
_COMPLEX = "complex numbers are not built; give real ones, as torch.view_as_real does"


def length_of(dataset: Any) -> int:
    """Returns a map-style Dataset's length; DataError where it has none, or is empty."""
    try:
        length = len(dataset)
    except Exception as error:
        raise DataError(
            f"{type(dataset).__name__} has no length or no items; give a map-style Dataset with some: one with __len__ "
            f"and __getitem__{_own_error(error) if hasattr(type(dataset), '__len__') else ''}"
        ) from error
    if not length:
        raise DataError(f"{type(dataset).__name__} has no length or no items; give a map-style Dataset with some")
    return length


def read_items(dataset: Dataset[Any], indices: Iterable[int]) -> Iterator[tuple[int, Any, Any]]:
    """Yields index, input and target of these items; DataError with the index where one fails or is no pair."""
    for index in indices:
        try:
            item = dataset[index]
        except Exception as error:
            name, at = _owner(dataset, index)
            raise DataError(
                f"item {at} of {name} cannot be read{_own_error(error)}; mend its __getitem__, or its __len__ if "
                "it has fewer items"
            ) from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            name, at = _owner(dataset, index)
            raise DataError(
                f"item {at} of {name} is a {_kind(item)}, no pair (input, target); give a Dataset whose items carry "
                f"their labels{_remedy_for_item(item)}"
            )
        yield index, item[0], item[1]


class Column:
    """Collects the inputs, or the targets, of many items in one tensor (N, ...), item by item."""

    def __init__(self, what: Literal["input", "target"], dataset: Dataset[Any], count: int, double: bool = False):
        self.tensor = torch.empty(0)
        self._what = what
        self._dataset = dataset
        self._count = count
        self._double = double
        self._filled = 0
        self._first: int | None = None  # the index of the first item
        self._number = False  # the items are Python numbers

    def add(self, index: int, value: Any) -> None:
        """Add the next item's value; DataError where it is no tensor, or unlike the first."""
        tensor = self.check(index, value)
        if tensor.dtype != self.tensor.dtype:
            self.tensor = self.tensor.to(torch.promote_types(self.tensor.dtype, tensor.dtype))
        self.tensor[self._filled] = tensor
        self._filled += 1

    def check(self, index: int, value: Any) -> Tensor:
        """Returns the value as a tensor without adding it; DataError as for `add`."""
        tensor, number = self._converted(index, value), type(value) in (bool, int, float)
        if self._first is None:
            self._first, self._number = index, number
            self.tensor = torch.empty((self._count, *tensor.shape), dtype=tensor.dtype)
        if tensor.shape != self.tensor.shape[1:]:
            raise self._unlike(index, "shape", tuple(self.tensor.shape[1:]), tuple(tensor.shape))
        if tensor.dtype != self.tensor.dtype and not (number and self._number):
            raise self._unlike(index, "dtype", self.tensor.dtype, tensor.dtype)
        return tensor

    def _converted(self, index: int, value: Any) -> Tensor:
        try:
            return _CONVERTED[self._what](dense(value), self._double)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            name, at = _owner(self._dataset, index)
            reason = " ".join(str(error).split())
            raise DataError(
                f"the {self._what}s of {name} cannot be stacked (the {self._what} of item {at} is a {_kind(value)}: "
                f"{reason}); {_REMEDIES[self._what]}"
            ) from error

    def _unlike(self, index: int, what: str, first: object, other: object) -> DataError:
        assert self._first is not None
        (name, at), (_, before) = _owner(self._dataset, index), _owner(self._dataset, self._first)
        remedy = f"give {self._what}s of one {what}" + (" (pad, crop or resize them)" if what == "shape" else "")
        return DataError(
            f"the {self._what}s of {name} cannot be stacked (the {what} of item {at} is {other}, that of item {before} "
            f"is {first}); {remedy}"
        )


def read_rows(dataset: Dataset[Any], rows: Sequence[int], double: bool = False) -> tuple[Tensor, Tensor]:
    """Read inputs (B, ...) and targets (B, ...) of these items; DataError where one fails, or they are not alike.

    With `double` float64 stays as it is.
    """
    inputs, targets = Column("input", dataset, len(rows), double), Column("target", dataset, len(rows), double)
    for index, value, target in read_items(dataset, rows):
        inputs.add(index, value)
        targets.add(index, target)
    return inputs.tensor, targets.tensor


_REMEDIES = {
    "input": "give inputs of one shape as tensors or arrays of numbers",
    "target": "give numbers, or tensors of one shape, as targets",
}


def dense(value: Any) -> Tensor:
    """Convert a number, an array, a list of numbers or a tensor to a dense tensor in memory without a gradient.

    Raises TypeError or ValueError, which say what to do, for anything else.
    """
    if isinstance(value, Tensor):
        return _plain_tensor(value)
    if value is None:
        raise TypeError("it has none; leave the item out, or give it a value")
    if isinstance(value, str | bytes):
        raise TypeError("texts must be numbered first, as a tensor of token ids or a class index")
    if type(value).__module__.partition(".")[0] == "PIL":
        raise TypeError("a PIL image must become a tensor; add torchvision's transforms.ToTensor() to its transform")
    if isinstance(value, dict):
        raise TypeError("one tensor is wanted; give one of its values, or stack them in one tensor")
    if isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value):
        raise TypeError("one tensor is wanted; stack or concatenate its tensors to one")
    if not isinstance(value, Number | list | tuple) and not hasattr(value, "__array__"):
        raise TypeError("it is no tensor, array or number")
    return _from_array(np.asarray(value))


def _from_array(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "c":
        raise TypeError(_COMPLEX)
    if array.dtype.name == "bfloat16":  # ml_dtypes' bfloat16, unknown to torch
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of dtype {array.dtype} does not hold plain numbers; convert it with astype")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if any(stride < 0 for stride in array.strides):
        array = array.copy()  # a flipped view, as np.flip returns
    return _plain_tensor(shared_tensor(np.asarray(array, dtype=array.dtype.newbyteorder("="))))


def shared_tensor(array: np.ndarray) -> Tensor:
    """Returns a tensor on an array's memory, which may be read-only (a mapped file, an object store): never write."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _plain_tensor(tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_nested:
        raise TypeError("a sparse or nested tensor has no rows to take; give it dense, as its to_dense() does")
    if tensor.is_quantized:
        raise TypeError("a quantized tensor cannot be trained on; give its dequantize()")
    if tensor.is_complex():
        raise TypeError(_COMPLEX)
    if tensor.is_meta:
        raise TypeError("a tensor on the meta device holds no values; give one in memory")
    return tensor.detach().cpu()


def input_tensor(inputs: Tensor, double: bool = False) -> Tensor:
    """Convert inputs for models: other floats to float32, and integers that torch cannot gather to int64.

    With `double`, for models of float64, float64 stays as it is.
    """
    return _single(inputs, double) if inputs.is_floating_point() else _signed(inputs)


def target_tensor(targets: Tensor, double: bool = False) -> Tensor:
    """Convert targets for torch's losses: class indices to int64, floats to float32 (`double`: float64 stays)."""
    if targets.is_floating_point():
        return _single(targets, double)
    return targets if targets.dtype == torch.bool else _signed(targets).long()


_CONVERTED = {"input": input_tensor, "target": target_tensor}


def _single(values: Tensor, double: bool) -> Tensor:
    return values if double and values.dtype == torch.float64 else values.float()


def _signed(whole: Tensor) -> Tensor:
    if whole.dtype not in (torch.uint16, torch.uint32, torch.uint64):
        return whole
    signed = whole.to(torch.int64)
    if whole.dtype == torch.uint64 and signed.numel() and int(signed.min()) < 0:
        raise ValueError("uint64 data has numbers of 2**63 or more, which int64 cannot hold; scale them first")
    return signed


class Draws:
    """Notices whether a Dataset draws its items at random; create it before the reading, ask it afterwards."""

    def __init__(self) -> None:
        self._before = _generator_states()

    def found(self, dataset: Dataset[Any], inputs: Tensor, targets: Tensor, double: bool = False) -> bool:
        """Read some items again; returns whether they differ from the first reading, (N, ...) each."""
        count = len(inputs)
        some = min(count, _COMPARED if self._before == _generator_states() else _COMPARED_MORE)
        rows = np.unique(np.linspace(0, count - 1, some).astype(int)).tolist()
        again = read_rows(dataset, rows, double)
        return not all(_alike(now, then[rows]) for now, then in zip(again, (inputs, targets)))


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    other = other.to(one.dtype)
    return bool(((one == other) | ((one != one) & (other != other))).all())  # NaN equals nothing


def _generator_states() -> tuple[Any, ...]:
    legacy = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), legacy["key"].tobytes(), legacy["pos"]


def _owner(dataset: Any, index: int) -> tuple[str, int]:
    """Returns the class of the Dataset behind subsets, and the item's index there."""
    while type(dataset) is Subset:
        index, dataset = int(dataset.indices[index]), dataset.dataset
    return type(dataset).__name__, index


def _own_error(error: Exception) -> str:
    """Returns the error and the last line of user code: ` (ValueError: no such file, my_data.py line 12)`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_ELSEWHERE)] or frames
    line = said(error)[:300]
    return f" ({line}, {own[-1].filename} line {own[-1].lineno})" if own else f" ({line})"


def _kind(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    if type(value).__module__.partition(".")[0] == "PIL":
        return "PIL image"
    return type(value).__name__


def _remedy_for_item(item: object) -> str:
    if isinstance(item, dict) and len(item) > 1:
        return ", as (item[{!r}], item[{!r}])".format(*list(item)[:2])
    if isinstance(item, tuple | list) and len(item) > 2:
        return "; put what else it holds into one tensor with the input or with the target"
    return ""
