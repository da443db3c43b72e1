"""Compares the class names by which sets of examples number their classes."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from fsl.data.examples import DatasetExamples, TensorExamples
from fsl.errors import DataError

_SHOWN = 10


def names_of(dataset: Any) -> tuple[str, ...] | None:
    """Returns the names by which a Dataset numbers its classes, torchvision's `classes`; None where it has none.

    DataError for concatenated datasets whose numbers mean different classes.
    """
    if isinstance(dataset, DatasetExamples | Subset):
        return names_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        found = [names for part in dataset.datasets if (names := names_of(part)) is not None]
        for other in found[1:]:
            refuse_others(found[0], other, "two datasets of a ConcatDataset", longer=True)
        return max(found, key=len, default=None)
    if isinstance(dataset, TensorExamples):
        return None
    names = getattr(dataset, "classes", None)
    named = isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if named else None  # type: ignore[arg-type]


def refuse_others(names: Sequence[str], others: Sequence[str], who: str, longer: bool = False) -> None:
    """Raise DataError where a number means one class here and another there; `longer`: the others may have more."""
    for k, (one, other) in enumerate(zip(names, others)):
        if one != other:
            raise DataError(
                f"{who} number their classes differently: {k} is '{one}' in one and '{other}' in the other; give both "
                "the same list of classes (as folders of the same names), or renumber the labels of one"
            )
    if not longer and len(others) > len(names):
        raise DataError(f"{who}: the second has classes that the first has not ({some(others[len(names) :])})")


def some(names: Sequence[object]) -> str:
    """Returns the first of these names, for a message."""
    return ", ".join(ascii(str(name)[:60])[1:-1] for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
