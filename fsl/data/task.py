"""Holds a run's training, test and validation examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.data.class_names import names_of, refuse_others
from fsl.data.examples import Examples
from fsl.data.given_data import as_examples
from fsl.errors import DataError
from fsl.segments.tensor_trees import Values, tensors_of


@checks_types(error=DataError)
@dataclass(frozen=True)
class Scaling:
    """Normalisation of inputs, channel by channel: minus `mean`, over `std`, in the inputs' original units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        fit = len(self.mean) == len(self.std) > 0 and all(map(math.isfinite, (*self.mean, *self.std)))
        if not fit or min(self.std) <= 0:
            raise DataError(
                f"mean={list(self.mean)} and std={list(self.std)}: give one finite number a channel of each, and "
                "std > 0"
            )


@checks_types(error=DataError)
@dataclass(frozen=True)
class TaskData:
    """The examples of a task; `groups` are natural ids of the training rows, for the natural partition.

    `class_names[k]` is the name of class k, and `scaling` the normalisation of inputs: nodes of a federation use the
    cloud's, whatever their own data would give. `scaled`: the training rows gave these constants.
    """

    name: str
    train: Examples
    test: Examples | None
    classes: int | None
    validation: Examples | None = None
    groups: np.ndarray | None = None
    origin: str | None = None  # in words, what the run's seed divided into training and validation rows
    class_names: tuple[str, ...] | None = None
    scaling: Scaling | None = None
    scaled: bool = False
    stored_bytes: float | None = None  # of a training input as it lies on the disk, in the mean
    recipe: str | None = None  # how the loader prepared the data, as JSON: a federation's nodes prepare theirs by it

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train.input_shape

    def blank(self, rows: int) -> Values:
        """Returns so many inputs of zeros, of the shape and dtype that inputs have."""
        return self.train.blank(rows)

    @property
    def input_dtype(self) -> torch.dtype:
        """Dtype of inputs."""
        return tensors_of(self.train.batch(torch.arange(min(1, len(self.train))))[0])[0].dtype


@checks_types(error=DataError, leave=("train", "test"))
def as_task(
    train: "TaskData | Examples | Dataset[Any] | Sequence[Any]",
    test: "Examples | Dataset[Any] | Sequence[Any] | None" = None,
    double: bool = False,
) -> TaskData:
    """Convert a user's training and test data to a task.

    Floats become float32; with `double`, for models of float64, float64 stays as it is.
    """
    if isinstance(train, TaskData):
        task = train if test is None else replace(train, test=as_examples(test, double))
        if not double:
            return task
        tested, held = (None if each is None else as_examples(each, double) for each in (task.test, task.validation))
        return replace(task, train=as_examples(task.train, double), test=tested, validation=held)
    named, others = names_of(train), None if test is None else names_of(test)
    if named is not None and others is not None:
        refuse_others(named, others, "training and test data")
    examples = as_examples(train, double)
    targets = examples.targets
    labels = targets.dim() == 1 and not targets.is_floating_point() and len(targets) > 0
    classes = int(targets.max()) + 1 if labels else None
    tested = None if test is None else as_examples(test, double)
    return TaskData(type(train).__name__, examples, tested, classes, class_names=named)


@checks_types(error=DataError)
def hold_out(data: TaskData, share: float, seed: int) -> TaskData:
    """Take a share of the training rows for validation, drawn from the seed."""
    count = round(len(data.train) * share) if 0 <= share < 1 else 0
    if share and not 0 < count < len(data.train):
        raise DataError(
            f"data.validation={share}: a share of the training data in [0, 1) that leaves rows on both sides"
        )
    if not count:
        return data
    order = torch.randperm(len(data.train), generator=seeds.torch_generator(seed, "validation"))
    held, kept = order[:count].sort().values, order[count:].sort().values
    groups = None if data.groups is None else data.groups[kept.numpy()]
    return replace(data, train=data.train.subset(kept), validation=data.train.subset(held), groups=groups)
