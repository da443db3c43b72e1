"""Matches classes by name, so that class k means the same in every set of examples of a run."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fsl.data.class_names import some
from fsl.data.examples import Examples, TensorExamples
from fsl.data.task import TaskData
from fsl.errors import DataError
from fsl.segments.tensor_trees import Values


class Renumbered(Examples):
    """Examples with renumbered class labels: `table[k]` for label k; -100, which is no label, stays."""

    def __init__(self, examples: Examples, table: Tensor):
        self.examples = examples
        self.table = table
        self.trimmed = examples.trimmed
        self.targets = _looked_up(examples.targets, table)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.examples.input_shape

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the items with renumbered labels."""
        inputs, targets = self.examples.batch(indices)
        return inputs, _looked_up(targets, self.table)

    def blank(self, rows: int) -> Values:
        """Returns so many inputs of zeros, as the examples' own."""
        return self.examples.blank(rows)

    def of_one_length(self) -> "Renumbered":
        """Returns the same examples, whose batches all have the length of the longest row."""
        return Renumbered(self.examples.of_one_length(), self.table)

    def subset(self, indices: Tensor) -> "Renumbered":
        """Returns these rows as a set of their own."""
        return Renumbered(self.examples.subset(indices), self.table)


def by_name(task: TaskData, names: Sequence[str], whose: str) -> TaskData:
    """Renumber a task's labels by their names, so that class k is `names[k]`; the task may lack some.

    DataError for a label with another name, and where the task does not name its classes. `whose` says in words whose
    data these are.
    """
    if task.class_names is None:
        raise DataError(
            f"{whose} do not say which class is which, and the run's classes have names ({some(names)}); let the "
            "loader return class_names in its TaskData"
        )
    own = task.class_names
    if own == tuple(names):
        return task
    index = {name: k for k, name in enumerate(names)}
    parts = {name: getattr(task, name) for name in ("train", "test", "validation")}
    found = sorted({int(k) for each in parts.values() if each is not None for k in each.targets.unique().tolist()})
    called = [own[k] if k < len(own) else f"number {k}" for k in found if k >= 0]
    unknown = [name for name in called if name not in index]
    if unknown:
        raise DataError(
            f"{whose} have rows of classes that the run has not: {some(unknown)}; the run's are {some(names)}: leave "
            "those rows out, or let the cloud's data have them"
        )
    table = torch.tensor([index.get(name, -1) for name in own], dtype=torch.int64)
    return replace(
        task,
        train=_renumbered(task.train, table),
        test=None if task.test is None else _renumbered(task.test, table),
        validation=None if task.validation is None else _renumbered(task.validation, table),
        classes=len(names),
        class_names=tuple(names),
    )


def _renumbered(examples: Examples, table: Tensor) -> Examples:
    if isinstance(examples, TensorExamples):
        return TensorExamples(examples.inputs, _looked_up(examples.targets, table))
    return Renumbered(examples, table)


def _looked_up(targets: Tensor, table: Tensor) -> Tensor:
    return torch.where(targets >= 0, table[targets.clamp(min=0)], targets)
