"""Refuses, before training, examples that would give a wrong result or fail rounds later."""

import torch
from torch import Tensor

from fsl.data.examples import Examples, TensorExamples
from fsl.data.tree_examples import TreeExamples
from fsl.errors import DataError
from fsl.segments.tensor_trees import TensorTree, Values

_BLOCK = 1 << 22  # numbers at a time, so that an intermediate copy stays small


def check_examples(train: Examples, test: Examples | None, validation: Examples | None = None) -> None:
    """Raise DataError for examples that are empty, not finite, or of different kinds in the sets.

    Of examples that are read item by item it checks only the targets and the first input.
    """
    sets = {"training": train, "test": test, "validation": validation}
    first = {name: _first(examples, name) for name, examples in sets.items() if examples is not None}
    for name, pair in first.items():
        for what, of_train, of_other in zip(("inputs", "targets"), first["training"], pair):
            _check_alike(what, name, of_train, of_other)
    for name, examples in sets.items():
        if examples is not None:
            _check_finite(examples.targets, f"the {name} targets")
            if isinstance(examples, TensorExamples):
                _check_finite(examples.inputs, f"the {name} inputs")
            elif isinstance(examples, TreeExamples):
                for key, tensor in examples.inputs.items():
                    _check_finite(tensor, f"the {name} inputs '{key}'")


def _first(examples: Examples, name: str) -> tuple[Values, Tensor]:
    """Returns the first row as a batch."""
    if not len(examples):
        remedy = "give some" + (f", or none at all: {name}_data=None" if name == "test" else "")
        raise DataError(f"the {name} data has no examples; {remedy}")
    inputs, targets = examples.batch(torch.zeros(1, dtype=torch.int64))
    if len(inputs) != 1 or len(targets) != 1:
        raise DataError(
            f"the {name} data gives {len(inputs)} inputs and {len(targets)} targets for one row; mend the batch() of "
            f"{type(examples).__name__}, which gives one of each for every index"
        )
    return inputs, targets


def _check_alike(what: str, name: str, train: Values, other: Values) -> None:
    if isinstance(train, TensorTree) and isinstance(other, TensorTree) and train.structure == other.structure:
        for key, one, another in zip(train.names, train.tensors, other.tensors, strict=True):
            longer = one.dim() == another.dim() > 1  # sequences may be padded to another length
            _check_alike(f"{what} '{key}'", name, *(each[:, :0] if longer else each for each in (one, another)))
        return
    if isinstance(train, TensorTree) or isinstance(other, TensorTree):
        kinds = (", ".join(each.names) if isinstance(each, TensorTree) else "one tensor" for each in (train, other))
        raise DataError(f"training and {name} {what} are {' and '.join(kinds)}; give both in one form")
    if train.shape[1:] != other.shape[1:]:
        shapes = " and ".join(str(tuple(each.shape[1:])) for each in (train, other))
        remedy = "resize, crop or pad them to one shape" if what == "inputs" else "give both in one form"
        raise DataError(f"training and {name} {what} differ in shape ({shapes}); {remedy}")
    if train.dtype != other.dtype:
        raise DataError(
            f"training and {name} {what} differ in dtype ({train.dtype} and {other.dtype}); prepare both alike: their "
            "numbers may well differ in scale too"
        )


def _check_finite(values: Tensor, what: str) -> None:
    """Raise a DataError that names the first row with NaN or an infinity, and their number."""
    if not values.is_floating_point() or not values.numel():
        return
    rows = max(1, _BLOCK // max(1, values[0].numel()))
    # A finite sum has only finite addends; one that is not finite may also have overflowed.
    suspects = [
        start for start in range(0, len(values), rows) if not torch.isfinite(values[start : start + rows].sum())
    ]
    found = [start + _not_finite(values[start : start + rows]) for start in suspects]
    bad = torch.cat(found) if found else torch.empty(0)
    if len(bad):
        row = int(bad[0])
        shown = values[row].flatten()
        number = shown[~torch.isfinite(shown)][0].item()
        raise DataError(
            f"{what} have NaN or infinities in {len(bad)} of {len(values)} rows (the first is row {row}: {number}), "
            "which every weight would become; replace those numbers, or leave the rows out"
        )


def _not_finite(values: Tensor) -> Tensor:
    """Returns the rows (n,) with a number that is not finite."""
    return (~torch.isfinite(values)).reshape(len(values), -1).any(1).nonzero()[:, 0]
