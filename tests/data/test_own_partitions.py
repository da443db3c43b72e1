"""Partitions as users have them: index lists, subsets, names, classes, and partitioners of flwr-datasets."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from flwr_datasets import partitioner as foreign
from fsl.strategies import SplitFedV1
from torch.utils.data import Subset, TensorDataset, random_split

import fsl
import fsl.costs
from fsl.data import IID, Dirichlet, Given, Natural, Pathological, Shards, TaskData, TensorExamples, as_partitioner
from fsl.data.dividing import divide
from fsl.data.examples import DatasetExamples
from fsl.data.partition import Divided, Partition
from fsl.data.partitioners import Partitioner
from fsl.errors import ConfigError, DataError

LABELS = torch.randint(5, (60,), generator=torch.Generator().manual_seed(0))
GROUPS = np.array([f"writer{i % 3}" for i in range(60)])
TASK = TaskData("counted", TensorExamples(torch.zeros(60, 2), LABELS), None, classes=5, groups=GROUPS)
PARTS = [[0, 2, 1], [5, 4], [9]]


def held(value, devices=3, task=TASK):
    partition = divide(task, as_partitioner(value), devices, None, seed=0)
    return [partition.indices(device).tolist() for device in range(devices)]


class Own(Partition):
    """A partition as a user writes one: any rows at all."""

    def __init__(self, rows, devices=3, size=None):
        self.rows, self.devices, self.said = rows, devices, size

    def indices(self, device):
        return self.rows[device]

    def size(self, device):
        return self.said or len(self.rows[device])


class Every(Partitioner):
    """A partitioner as a user writes one, that gives what it is given."""

    def __init__(self, partition):
        self.partition = partition

    def divide(self, targets, devices, seed, groups=None):
        return self.partition


DATA = TensorDataset(torch.zeros(60, 2), LABELS)
TRAIN = Subset(DATA, [*range(50, 60), *range(0, 20)])


@pytest.mark.parametrize(
    ("data", "subsets"),
    [
        (DATA, [Subset(DATA, [3, 1]), Subset(DATA, [0])]),
        (TensorDataset(*DATA.tensors), [Subset(DATA, [1, 3]), Subset(DATA, [0])]),
        (DATA.tensors, [Subset(DATA, [1, 3]), [0]]),
        (TASK, [Subset(TASK.train, [1, 3]), Subset(TASK.train, [0])]),
        (TaskData("live", DatasetExamples(DATA), None, 5), [Subset(DATA, [1, 3]), Subset(DATA, [0])]),
        (TRAIN, [Subset(TRAIN, [1, 3]), Subset(TRAIN, [0])]),
        (TRAIN, [Subset(DATA, [53, 51]), Subset(DATA, [50])]),
        (TRAIN, [Subset(Subset(TRAIN, [9, 3, 0, 1]), [1, 3]), Subset(Subset(DATA, range(40, 60)), [10])]),
        (Subset(TRAIN, range(1, 11)), [Subset(DATA, [52, 0]), Subset(TRAIN, [1])]),
    ],
    ids=["its own", "equal", "pair", "task", "live", "a subset's", "its base's", "nested", "of a nested one"],
)
def test_subsets_are_rows_of_what_they_are_taken_of(data, subsets):
    wanted = [[1, 9], [0]] if data is not TRAIN and isinstance(data, Subset) else [[1, 3], [0]]
    assert [rows.tolist() for rows in as_partitioner(subsets, data).rows] == wanted
    assert [rows.tolist() for rows in as_partitioner(Given(subsets), data).rows] == wanted


OTHER = TensorDataset(torch.zeros(60, 2), LABELS)


@pytest.mark.parametrize(
    ("data", "subset", "line"),
    [
        (DATA, Subset(OTHER, [0]), "device 0 is given a Subset of other data than the training data"),
        (TRAIN, Subset(OTHER, [0]), "device 0 is given a Subset of other data than the training data"),
        (TASK, Subset(OTHER, [0]), "device 0 is given a Subset of other data than the training data"),
        (TRAIN, Subset(DATA, [30]), "device 0 has row 30 of .* not among the training data"),
        (Subset(DATA, [1, 1, 2]), Subset(DATA, [1]), "device 0 has row 1 of .* several times in the training data"),
    ],
    ids=["other", "other than a subset", "other than a task", "not among", "several times"],
)
def test_subsets_of_other_data_are_refused(data, subset, line):
    with pytest.raises(DataError, match=line):
        as_partitioner([subset], data)


@pytest.mark.parametrize(
    "rows",
    [
        PARTS,
        tuple(map(tuple, PARTS)),
        [np.array(own) for own in PARTS],
        [torch.tensor(own, dtype=torch.int32) for own in PARTS],
        {2: [9], 0: range(3), 1: {5, 4}},
        {np.int64(device): own for device, own in enumerate(PARTS)},
        Given(PARTS),
        Own([torch.tensor(sorted(own)) for own in PARTS]),
        Divided(3, np.array([0, 1, 2, 4, 5, 9]), np.array([0, 3, 5, 6])),
    ],
    ids=["lists", "tuples", "arrays", "tensors", "mapping", "numpy ids", "Given", "own Partition", "Divided"],
)
def test_rows_by_device_are_taken_as_they_are(rows):
    assert held(rows) == [[0, 1, 2], [4, 5], [9]]


def test_a_table_of_rows_has_a_line_per_device():
    assert held(np.arange(6).reshape(3, 2)) == held(torch.arange(6).reshape(3, 2)) == [[0, 1], [2, 3], [4, 5]]


def test_the_subsets_of_a_random_split_are_a_partition():
    subsets = random_split(range(60), [30, 20, 10], generator=torch.Generator().manual_seed(0))
    assert held(subsets) == [sorted(subset.indices) for subset in subsets]


@pytest.mark.parametrize(
    ("value", "same"),
    [
        (None, IID()),
        (IID, IID()),
        ("iid", IID()),
        ("Dirichlet", Dirichlet()),
        ("shards", Shards()),
        (Pathological, Pathological()),
        ("natural", Natural()),
    ],
)
def test_a_name_or_a_class_stands_for_its_defaults(value, same):
    assert as_partitioner(value) == same


def test_a_partitioner_is_itself():
    rule = Dirichlet(alpha=0.3)
    assert as_partitioner(rule) is rule


@pytest.mark.parametrize(
    "make",
    [
        lambda: foreign.IidPartitioner(num_partitions=3),
        lambda: foreign.DirichletPartitioner(num_partitions=3, partition_by="y", alpha=0.5, min_partition_size=1),
        lambda: foreign.ShardPartitioner(num_partitions=3, partition_by="label", num_shards_per_partition=2),
        lambda: foreign.PathologicalPartitioner(num_partitions=3, partition_by="label", num_classes_per_partition=2),
        lambda: foreign.LinearPartitioner(num_partitions=3),
        lambda: foreign.SizePartitioner([30, 20, 10]),
        lambda: foreign.NaturalIdPartitioner(partition_by="writer"),
        lambda: foreign.GroupedNaturalIdPartitioner(partition_by="writer", group_size=1),
        lambda: foreign.InnerDirichletPartitioner(partition_sizes=[30, 20, 10], partition_by="label", alpha=0.9),
    ],
)
def test_a_partitioner_of_flwr_datasets_divides_as_it_would_by_itself(make):
    import datasets

    oracle, name = make(), getattr(make(), "_partition_by", "label")
    labels = GROUPS if "Natural" in type(oracle).__name__ else LABELS.numpy()
    oracle.dataset = datasets.Dataset.from_dict({name: labels, "row": np.arange(60)}).with_format("numpy")
    rule = make()
    expected = [sorted(oracle.load_partition(device)["row"][:].tolist()) for device in range(3)]
    assert held(rule) == held(rule) == expected  # it can be used again


def test_natural_ids_by_the_label_are_a_device_per_class():
    rows = held(foreign.NaturalIdPartitioner(partition_by="label"), devices=5)
    assert [set(LABELS[own].tolist()) for own in rows] == [{label} for label in range(5)]


REFUSED = [
    ("dirichlett", "partition='dirichlett': it must be a name .*iid, dirichlet, .* or the rows of each device"),
    (5, "partition=5: it must be a name"),
    (lambda targets: targets, "partition=<lambda>: it must be"),
    (int, "partition=int: it must be"),
    (Every, "partition=Every: a class that needs arguments .*; give an object"),
    ("resample", "samples_per_device=None: partition=resample needs at least 1"),
    ([], "it names no device; give a list of rows for each"),
    ([0, 1, 2], "device 0 is given 0, no list of rows; give a list of rows for each device"),
    (np.array([0, 1, 2]), "device 0 is given 0, no list of rows"),
    ([[0], [1], []], "device 2 would hold no rows; give it some, or use fewer devices"),
    ([[0], [1], [2, 2]], "device 2 names row 2 more than once; name each row once"),
    ([[0], [1], [-1]], "device 2 names row -1; rows are counted from 0"),
    ([[0], [1], [60]], "device 2 names row 60, and there are 60 training rows; give rows from 0 to 59"),
    ([[0], [1], [0.5]], r"the rows of device 2 are float64 of shape \(1,\); give row numbers as whole numbers"),
    ([[0], [1], [True, False]], r"the rows of device 2 are bool .*; take its nonzero\(\)"),
    ([[0], [1], ["a"]], "the rows of device 2 are <U1"),
    ([[0], [1], [[2, 3]]], r"the rows of device 2 are int64 of shape \(1, 2\)"),
    ([[0], [1], [[2], [3, 4]]], "the rows of device 2 are object"),
    ([[0], [1], "ab"], "device 2 is given a str; give a list of row numbers"),
    ([[0], [1], None], "device 2 is given a NoneType; give a list"),
    ([[0], [1]], "partition names the rows of 2 devices, and devices=3; make them agree"),
    ({"0": [0], "1": [1], "2": [2]}, "its keys are '0', '1', '2', and devices are numbered from 0; .* 0 to 2"),
    ({1: [0], 2: [1], 3: [2]}, "its keys are 1, 2, 3, and devices are numbered from 0"),
    (Own([torch.tensor([0])] * 2, devices=2), "gives a partition of 2 devices, and devices=3; make them agree"),
    (Own([[0], [1], [2]]), "the rows of device 0 are list; give a tensor of int64"),
    (Own([torch.tensor([0.0])] * 3), r"the rows of device 0 are torch\.float32 of shape \(1,\)"),
    (Own([torch.tensor([0])] * 3, size=9), r"device 0 has 1 rows, and its size is said to be 9; mend its size\(\)"),
    (Own([torch.tensor([61])] * 3), "device 0 names row 61 of 60; give rows from 0 to 59"),
    (Own([torch.tensor([-1])] * 3), "device 0 names row -1 of 60"),
    (Own([torch.empty(0, dtype=torch.int64)] * 3), "device 0 holds no samples; a partition must give every device"),
    (Every([[0], [1], [2]]), "partition=Every gives a partition list, and devices=3"),
    (foreign.IidPartitioner, "partition=IidPartitioner: a class; give an object of it, with its num_partitions"),
    (foreign.IidPartitioner(num_partitions=4), "it makes 4 partitions, and devices=3; make them agree"),
    (foreign.NaturalIdPartitioner(partition_by="label"), "it makes 5 partitions, and devices=3; make them agree"),
    (foreign.VerticalEvenPartitioner(num_partitions=3), "it divides columns, and devices hold rows"),
    (foreign.DirichletPartitioner(3, "label", 0.5, seed=None), "seed=None draws another partition .* give it a seed"),
    (foreign.DirichletPartitioner(3, "label", 0.5, 50), r"it cannot divide these 60 rows \(ValueError: .*\)"),
]


@pytest.mark.parametrize(("value", "line"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_partition_is_refused_in_one_line(value, line):
    with pytest.raises(ConfigError, match=line) as refused:
        held(value)
    assert "\n" not in str(refused.value)


def test_a_partitioner_that_has_divided_other_data_is_refused():
    import datasets

    used = foreign.IidPartitioner(num_partitions=3)
    used.dataset = datasets.Dataset.from_dict({"row": [0, 1, 2]})
    with pytest.raises(ConfigError, match="it has divided a data set already; give a new one"):
        held(used)


def test_natural_ids_that_the_data_does_not_have_are_refused():
    task = TaskData("no ids", TASK.train, None, classes=5)
    with pytest.raises(DataError, match="the data names no ids 'writer'"):
        held(foreign.NaturalIdPartitioner(partition_by="writer"), task=task)


@pytest.mark.parametrize("make", [Given, lambda rows: Own([torch.tensor(own) for own in rows])], ids=["Given", "Own"])
def test_rows_that_are_left_out_or_shared_are_told(make, caplog):
    held(make([[0, 1, 2], [2, 3], [4]]))
    assert "the partition leaves 55 of 60 training rows unused" in caplog.text
    assert "the partition gives out 1 of 60 training rows more than once" in caplog.text


@pytest.mark.parametrize("rule", [IID(), Dirichlet(), Shards(), Natural()])
def test_nothing_is_told_of_a_partition_that_uses_each_row_once(rule, caplog):
    with caplog.at_level(logging.INFO):
        held(rule)
    assert not caplog.records


def test_a_run_and_a_price_refuse_subsets_of_other_data():
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 5))
    options = {"strategy": SplitFedV1(), "devices": 1, "partition": [Subset(OTHER, range(10))]}
    for use in (partial(fsl.simulate, cut="0", rounds=1), fsl.costs.price):
        with pytest.raises(DataError, match="a Subset of other data"):
            use(model, DATA, **options)
