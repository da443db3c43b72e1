"""Loads data once for the runs of a sweep, as long as no run has changed them."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fsl.data import TaskData
from fsl.data.examples import Examples, TensorExamples
from fsl.data.tree_examples import TreeExamples
from fsl.importing.digests import digest_values
from fsl.run.config import load_data


@dataclass(frozen=True)
class _Loaded:
    data: TaskData
    digests: tuple[str, ...]  # of all values, as they were loaded


class SharedData:
    """Keeps the last data that were loaded, and gives them to runs of equal settings.

    Who gets data that another run has had gets the same values: they are compared by the digest of every value, and
    loaded anew where a run wrote into them. Only data in memory are kept; a Dataset that draws its items is made anew.
    """

    def __init__(self, load: Callable[[Mapping[str, Any]], TaskData] = load_data):
        self._load = load
        self._key = ""
        self._kept: _Loaded | None = None

    def __call__(self, settings: Mapping[str, Any]) -> TaskData:
        """Returns the data that these settings of the group `data` describe."""
        key = json.dumps([os.getcwd(), settings], sort_keys=True, default=repr)
        if self._kept is not None and key == self._key and _digests(self._kept.data) == self._kept.digests:
            return self._kept.data
        self._kept = None  # so that two data sets are never held
        data = self._load(settings)
        if all(isinstance(examples, TensorExamples | TreeExamples) for examples in _parts(data)):
            self._key, self._kept = key, _Loaded(data, _digests(data))
        return data

    def forget(self) -> None:
        """Load anew whatever is asked for next: its files may have changed."""
        self._kept = None


def _parts(data: TaskData) -> list[Examples]:
    return [examples for examples in (data.train, data.test, data.validation) if examples is not None]


def _digests(data: TaskData) -> tuple[str, ...]:
    tensors = []
    for examples in _parts(data):
        assert isinstance(examples, TensorExamples | TreeExamples)
        inputs = examples.inputs
        tensors += [examples.targets, *(inputs.values() if isinstance(inputs, Mapping) else [inputs])]
    groups = [] if data.groups is None else [data.groups]
    return tuple(map(partial(digest_values, whole=True), [*tensors, *groups]))


SHARED = SharedData()  # of the jobs that run in this process, one after another
