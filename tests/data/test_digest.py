"""The identity of data and partitions: the same in every process, and another for other content."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from flwr_datasets import partitioner as foreign
from torch.utils.data import Dataset, Subset

from fsl.data import IID, DatasetExamples, Dirichlet, Given, TensorExamples
from fsl.data.data_digest import describe_partition, digest
from fsl.data.partition import Divided, Partition, Resampled
from fsl.data.partitioners import Partitioner
from fsl.importing.digests import digest_values

X = torch.arange(40.0).reshape(10, 4)
Y = torch.arange(10) % 3


class Shifted:
    """A transform of a user's own."""

    def __init__(self, by):
        self._by = by

    def __call__(self, x):
        return x + self._by * torch.rand(())


class Live(Dataset):
    def __init__(self, transform, rows=X):
        self.rows, self.transform = rows, transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.transform(self.rows[index]), index % 3


def test_the_same_content_has_the_same_digest_whatever_its_layout():
    views = [
        X.clone(),
        X.T.contiguous().T,
        torch.stack([X, X])[1],
        torch.cat([X, X])[:10],
        X.clone().requires_grad_(),
    ]
    assert {digest(TensorExamples(x, Y)) for x in views} == {digest(TensorExamples(X, Y))}
    one = torch.tensor([1.5, 2.5])
    assert digest_values(one.expand(10, 2)) == digest_values(one.repeat(10, 1))
    assert digest_values(X.numpy().astype(">f4")) == digest_values(X.numpy()) == digest_values(X)


CHANGED = {
    "one number": (X.index_put((torch.tensor(5), torch.tensor(2)), torch.tensor(0.5)), Y),
    "one target": (X, Y.index_put((torch.tensor(5),), torch.tensor(0))),
    "the order": (X.flip(0), Y),
    "the dtype of inputs": (X.half(), Y),
    "the dtype of targets": (X, Y.int()),
    "the shape": (X.reshape(10, 2, 2), Y),
    "fewer rows": (X[:9], Y[:9]),
    "the sign of zero": (X.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(-0.0)), Y),
}


@pytest.mark.parametrize("other", CHANGED.values(), ids=CHANGED.keys())
def test_other_content_has_another_digest(other):
    assert digest(TensorExamples(*other)) != digest(TensorExamples(X, Y))


def test_float16_and_bfloat16_of_the_same_bits_differ():
    bits = torch.arange(10, dtype=torch.int16)
    assert digest_values(bits.view(torch.float16)) != digest_values(bits.view(torch.bfloat16))


def test_large_inputs_are_told_by_a_sample_with_the_first_and_the_last_row(monkeypatch):
    monkeypatch.setattr("fsl.importing.digests.WHOLE", 100)
    monkeypatch.setattr("fsl.importing.digests._SAMPLED", 3)
    inputs, targets = torch.zeros(1000, 2), torch.zeros(1000)

    def changed(row, where):
        tensors = {"inputs": inputs.clone(), "targets": targets.clone()}
        tensors[where][row] = 1
        return digest(TensorExamples(**tensors)) != digest(TensorExamples(inputs, targets))

    assert changed(0, "inputs")
    assert changed(999, "inputs")
    assert not all(changed(row, "inputs") for row in range(1, 10))  # it is a sample
    assert all(changed(row, "targets") for row in range(0, 1000, 100))


def test_a_dataset_that_is_read_anew_is_told_by_its_transforms_and_never_by_what_it_draws():
    same = {digest(DatasetExamples(Live(Shifted(1)))) for _ in range(2)}
    assert len(same) == 1
    others = [Live(Shifted(2)), Live(Shifted(1), X + 1), Live(lambda x: x), Subset(Live(Shifted(1)), range(9))]
    assert len(same | {digest(DatasetExamples(other)) for other in others}) == 5


@pytest.mark.slow
def test_digests_and_partitions_are_the_same_in_another_process():
    script = (
        "import torch; from fsl.data.data_digest import digest, describe_partition; from fsl.data import *\n"
        "x, y = torch.arange(40.).reshape(10, 4), torch.arange(10) % 3\n"
        "print(digest(TensorExamples(x, y)), describe_partition([[0, 1], [2]]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{digest(TensorExamples(X, Y))} {describe_partition(Given([[1, 0], [2]]))}\n"


class Fifth(Partitioner):
    """A partitioner of a user's own, with what it does in a private attribute."""

    def __init__(self, share):
        self._share = share

    def divide(self, targets, devices, seed, groups=None):
        raise NotImplementedError


class Halves(Partition):
    devices = 2

    def __init__(self, bound):
        self._bound = bound

    def indices(self, device):
        return torch.arange(self._bound) + device * self._bound

    def size(self, device):
        return self._bound


DIFFERENT = [
    [Fifth(0.2), Fifth(0.3)],
    [Halves(2), Halves(3)],
    [Dirichlet(0.3), Dirichlet(0.4), "dirichlet", IID],
    [[[0], [1]], [[0], [2]], [[0, 1], [2]], [[0], [1, 2]], {0: [1], 1: [0]}],
    [Divided(2, np.array([0, 1, 2]), np.array([0, 1, 3])), Divided(2, np.array([0, 1, 2]), np.array([0, 2, 3]))],
    [Resampled(2, 9, 3, 0), Resampled(2, 9, 3, 1)],
    [foreign.IidPartitioner(3), foreign.IidPartitioner(4), foreign.LinearPartitioner(3)],
    [foreign.DirichletPartitioner(3, "label", a, seed=s) for a, s in ((0.5, 1), (0.6, 1), (0.5, 2))],
    [foreign.SizePartitioner([1, 2]), foreign.SizePartitioner([2, 1])],
]


@pytest.mark.parametrize("values", DIFFERENT, ids=range(len(DIFFERENT)))
def test_other_partitions_have_other_descriptions(values):
    shown = [describe_partition(value) for value in values]
    assert len(set(shown)) == len(shown)
    assert not any(" at 0x" in text for text in shown)


def test_a_partition_is_described_in_words_that_reports_read():
    assert describe_partition(Dirichlet(0.3)) == "fsl.data.partitioners.Dirichlet {'alpha': 0.3, 'min_samples': 1}"
    assert describe_partition(foreign.IidPartitioner(3)) == (
        "flwr_datasets.partitioner.IidPartitioner {'num_partitions': 3}"
    )
    assert describe_partition([[0], [1]]).startswith("fsl.data.Given {'devices': 2, 'rows': '#")
