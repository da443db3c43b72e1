"""Identifies data and partitions in a run's settings, by digests and descriptions."""

from typing import Any

import numpy as np
import torch

from fsl.data.examples import DatasetExamples, Examples, TensorExamples
from fsl.data.own_partitions import Fixed, Foreign, Given, as_partitioner
from fsl.data.partition import Divided, Partition
from fsl.data.partitioners import Partitioner
from fsl.data.tree_examples import TreeExamples
from fsl.importing.description import describe
from fsl.importing.digests import digest_text, digest_values
from fsl.importing.import_paths import public_path

_SAMPLED = 1000  # rows that count of large examples


def digest(examples: Examples) -> str:
    """Returns 16 hexadecimal characters that identify examples, the same in every process.

    All targets count, and inputs in memory: all of them up to 64 MB, above that a thousand rows with the first and the
    last. Of a Dataset that is read anew each time no item counts, since it may draw them at random, but its length,
    class, attributes and transforms do (`importing.description`): a change in files that it reads goes unseen.
    """
    parts = [str(len(examples)), digest_values(examples.targets, whole=True)]
    if isinstance(examples, TensorExamples):
        parts.append(digest_values(examples.inputs))
    elif isinstance(examples, TreeExamples):
        parts += [f"{name} {digest_values(tensor)}" for name, tensor in examples.inputs.items()]
        parts += ["trimmed"] if examples.trimmed else []
    elif isinstance(examples, DatasetExamples):
        parts.append(describe(examples.dataset))
    else:
        parts.append(describe(examples))
        if not examples.draws and len(examples):
            rows = np.linspace(0, len(examples) - 1, min(len(examples), _SAMPLED)).astype(np.int64)
            parts.append(digest_values(examples.batch(torch.from_numpy(rows))[0]))
    return digest_text(repr(parts))


def describe_partition(partition: Any) -> str:
    """Describe a partition as text: a rule by its class and settings, given rows by their number and digest.

    Takes what `fsl.data.as_partitioner` takes, and a finished partition.
    """
    if isinstance(partition, Divided):
        rows = digest_text(digest_values(partition.rows) + digest_values(partition.bounds))
        return f"{public_path(type(partition))} { ({'devices': partition.devices, 'rows': f'#{rows}'})!r}"
    if isinstance(partition, Partition):
        return describe(partition)
    rule = partition if isinstance(partition, Partitioner) else as_partitioner(partition)
    if isinstance(rule, Fixed):
        return describe_partition(rule.partition)
    if isinstance(rule, Given):
        rows = digest_text(" ".join(map(digest_values, rule.rows)))
        return f"fsl.data.Given { ({'devices': len(rule.rows), 'rows': f'#{rows}'})!r}"
    if isinstance(rule, Foreign):
        arguments = {name: _short(value) for name, value in rule.arguments.items()}
        return f"{public_path(type(rule.partitioner))} {arguments!r}"
    return describe(rule)


def _short(value: Any) -> Any:
    """Returns an argument as a literal: numbers as they are, anything else as text."""
    value = value.tolist() if isinstance(value, np.ndarray) and value.size <= 10 else value
    return value if isinstance(value, bool | int | float | str | None) else describe(value)
