"""Partitions: who holds which rows, and what is refused."""

import datasets
import numpy as np
import pytest
import torch

from fsl import seeds
from fsl.data import IID, Dirichlet, Natural, Pathological, Proportional, Resample, Shards, class_counts, limited
from fsl.errors import ConfigError, DataError

CLASSES = 10
TARGETS = np.random.default_rng(0).integers(CLASSES, size=1003)  # divides evenly by nothing
GROUPS = np.array([f"writer{i % 20:02}" for i in range(len(TARGETS))])
DIVIDING = [IID(), Dirichlet(alpha=0.5), Shards(), Pathological(), Natural()]
ALL = [*DIVIDING, Resample(samples_per_device=7)]


def divide(partitioner, devices=20, seed=0, targets=TARGETS, groups=GROUPS):
    return partitioner.divide(targets, devices, seed, groups)


def held(partition):
    return [partition.indices(k) for k in range(partition.devices)]


def name_of(value):
    return type(value).__name__.lower()


@pytest.mark.parametrize("partitioner", DIVIDING, ids=name_of)
def test_every_row_goes_to_exactly_one_device(partitioner):
    rows = torch.cat(held(divide(partitioner)))
    assert rows.dtype == torch.int64
    assert torch.equal(rows.sort().values, torch.arange(len(TARGETS)))


@pytest.mark.slow
@pytest.mark.parametrize("partitioner", ALL, ids=name_of)
def test_a_seed_always_draws_the_same_partition(partitioner):
    first, second = held(divide(partitioner)), held(divide(partitioner))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("partitioner", [p for p in ALL if not isinstance(p, Natural)], ids=name_of)
def test_another_seed_draws_another_partition(partitioner):
    first, second = held(divide(partitioner, seed=1)), held(divide(partitioner, seed=2))
    assert not all(a.equal(b) for a, b in zip(first, second))


@pytest.mark.slow
@pytest.mark.parametrize("cap", [None, 5], ids=["whole", "limited"])
@pytest.mark.parametrize("partitioner", ALL, ids=name_of)
def test_a_device_has_as_many_rows_as_its_size_says_in_order(partitioner, cap):
    partition = divide(partitioner) if cap is None else limited(divide(partitioner), cap, seed=0)
    for device, rows in enumerate(held(partition)):
        assert len(rows) == partition.size(device) > 0
        assert torch.equal(rows, rows.sort().values)


@pytest.mark.parametrize("partitioner", [IID(), Resample(samples_per_device=7)], ids=name_of)
def test_a_device_cannot_change_what_it_holds(partitioner):
    partition = divide(partitioner)
    rows = partition.indices(3)
    before = rows.clone()
    rows.zero_()
    assert torch.equal(partition.indices(3), before)


def test_iid_parts_differ_by_one_row_at_most():
    sizes = [len(rows) for rows in held(divide(IID()))]
    assert max(sizes) - min(sizes) <= 1


def test_dirichlet_skew_grows_as_alpha_falls():
    def largest_share(alpha):
        counts = class_counts(divide(Dirichlet(alpha)), TARGETS, range(20))
        return (counts.max(axis=1) / counts.sum(axis=1)).mean()

    shares = [largest_share(alpha) for alpha in (100.0, 1.0, 0.3)]
    assert shares == sorted(shares)
    assert shares[0] < 0.3 < shares[-1]


def test_dirichlet_gives_every_device_its_least():
    assert min(len(rows) for rows in held(divide(Dirichlet(alpha=1.0, min_samples=10)))) >= 10


@pytest.mark.parametrize("devices", [3, 20, 150])
def test_shards_use_all_rows_in_equal_shards(devices):
    sizes = [len(rows) for rows in held(divide(Shards(3), devices=devices))]
    assert sum(sizes) == len(TARGETS)
    assert max(sizes) - min(sizes) <= 3  # a row a shard


def test_a_device_of_shards_holds_few_classes():
    counts = class_counts(divide(Shards(2)), TARGETS, range(20))
    assert (counts > 0).sum(axis=1).max() <= 4  # a shard may lie across the border of two classes


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_pathological_devices_hold_so_many_classes(classes):
    counts = class_counts(divide(Pathological(classes)), TARGETS, range(20))
    assert set((counts > 0).sum(axis=1)) == {classes}


def test_a_natural_device_holds_one_id():
    for device, rows in enumerate(held(divide(Natural(), devices=20))):
        assert set(GROUPS[rows.numpy()]) == {f"writer{device:02}"}


def test_fewer_devices_than_natural_ids_take_the_first_ids():
    rows = torch.cat(held(divide(Natural(), devices=3)))
    assert set(GROUPS[rows.numpy()]) == {"writer00", "writer01", "writer02"}


def test_a_hundred_thousand_resampled_devices_cost_nothing_until_asked():
    partition = divide(Resample(samples_per_device=7), devices=100_000)
    assert all(not isinstance(value, np.ndarray | torch.Tensor) for value in vars(partition).values())
    rows = partition.indices(99_999)
    assert len(rows) == 7
    assert 0 <= rows.min() <= rows.max() < len(TARGETS)
    assert not torch.equal(rows, partition.indices(99_998))


def test_a_resampled_device_does_not_depend_on_how_many_there_are():
    few, many = (divide(Resample(samples_per_device=7), devices=n) for n in (5, 5000))
    assert torch.equal(few.indices(3), many.indices(3))


def test_a_limited_device_keeps_rows_it_had():
    whole = divide(IID())
    capped = limited(whole, 5, seed=0)
    for device in range(20):
        assert set(capped.indices(device).tolist()) <= set(whole.indices(device).tolist())


def test_class_counts_are_those_of_the_rows():
    partition = divide(IID())
    counts = class_counts(partition, TARGETS, [4, 2])
    for row, device in zip(counts, [4, 2]):
        labels = TARGETS[partition.indices(device).numpy()]
        assert row.tolist() == [int((labels == c).sum()) for c in range(CLASSES)]
    assert class_counts(partition, TARGETS, []).shape == (0, CLASSES)


@pytest.mark.parametrize("partitioner", ALL, ids=name_of)
def test_nothing_is_printed(partitioner, capfd, recwarn):
    divide(partitioner)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.slow
@pytest.mark.parametrize("devices", [150, pytest.param(1000, marks=pytest.mark.shows)])
@pytest.mark.parametrize("partitioner", DIVIDING, ids=name_of)
def test_many_devices(partitioner, devices):
    targets = np.random.default_rng(0).integers(CLASSES, size=20 * devices)
    partition = divide(partitioner, devices=devices, targets=targets, groups=np.arange(len(targets)) % devices)
    assert sum(partition.size(k) for k in range(devices)) == 20 * devices


@pytest.mark.parametrize(("samples", "devices"), [(10, 3), (11, 3), (9, 9), (1437, 10)])
def test_equal_parts_are_those_of_flwr_datasets(samples, devices):
    from flwr_datasets.partitioner import IidPartitioner

    shuffled = seeds.numpy_generator(7, "partition").permutation(samples)
    oracle = IidPartitioner(num_partitions=devices)
    oracle.dataset = datasets.Dataset.from_dict({"row": shuffled})
    partition = IID().divide(np.zeros(samples), devices, seed=7)
    for device in range(devices):
        assert partition.indices(device).tolist() == sorted(oracle.load_partition(device)["row"])


TINY = np.array([0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Dirichlet(alpha=0), r"partition\.alpha=0: the concentration is a finite number above 0"),
        (lambda: Dirichlet(alpha=float("nan")), r"partition\.alpha=nan: .* above 0"),
        (lambda: Dirichlet(alpha=float("inf")), r"partition\.alpha=inf: the concentration is a finite number"),
        (lambda: Dirichlet(min_samples=0), r"partition\.min_samples=0: it must be at least 1"),
        (lambda: Shards(0), r"partition\.shards_per_device=0: it must be at least 1"),
        (lambda: Pathological(0), r"partition\.classes_per_device=0: it must be at least 1"),
        (lambda: Resample(), r"samples_per_device=None: partition=resample needs at least 1 .* samples_per_device=64"),
        (lambda: Resample(0), r"samples_per_device=0: partition=resample needs at least 1"),
        (lambda: limited(divide(IID()), 0, seed=0), r"samples_per_device=0: it must be at least 1"),
        (lambda: divide(IID(), devices=0), r"devices=0: it must be at least 1"),
        (lambda: divide(Resample(5), devices=0), r"devices=0: it must be at least 1"),
    ],
)
def test_a_wrong_option_is_one_clear_line(make, line):
    with pytest.raises(ConfigError, match=line) as refused:
        make()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("partitioner", DIVIDING, ids=name_of)
def test_more_devices_than_samples_are_refused(partitioner):
    with pytest.raises(DataError, match=r"devices=7: there are only 6 .* fewer devices, or partition=resample"):
        divide(partitioner, devices=7, targets=TINY)


@pytest.mark.parametrize(
    ("partitioner", "devices", "line"),
    [
        (
            Dirichlet(0.01),
            6,
            r"partition\.alpha=0\.01: \d of 6 devices would hold fewer than 1 sample \(device \d.*",
        ),
        (Dirichlet(min_samples=3), 3, r"partition\.min_samples=3: 3 devices .* of 6 training samples; use at most 2"),
        (Shards(2), 4, r"partition\.shards_per_device=2: 4 devices make 8 shards, .* 6 .*; use at most 1"),
        (Pathological(3), 2, r"partition\.classes_per_device=3: the training data has 2 classes; use at most 2"),
        (Pathological(2), 4, r"partition\.classes_per_device=2: among 4 devices some class .* fewer devices"),
        (Natural(), 5, r"devices=5: the data has only 4 natural ids; use at most so many devices"),
    ],
    ids=str,
)
def test_data_that_does_not_suffice_is_one_clear_line(partitioner, devices, line):
    with pytest.raises(DataError, match=line) as refused:
        divide(partitioner, devices=devices, targets=TINY, groups=np.array(list("abcdaa")))
    assert "\n" not in str(refused.value)


def test_natural_without_ids_is_refused():
    with pytest.raises(DataError, match=r"names no ids; set data\.group_column, or use another partition"):
        divide(Natural(), groups=None)


def test_natural_ids_must_be_one_a_row():
    with pytest.raises(DataError, match="there are 3 ids for 1003 rows"):
        divide(Natural(), devices=2, groups=np.arange(3))


@pytest.mark.parametrize("partitioner", [Dirichlet(), Shards(), Pathological()], ids=name_of)
def test_targets_that_are_no_labels_are_refused_where_labels_matter(partitioner):
    with pytest.raises(DataError, match=rf"partition={name_of(partitioner)} goes by class labels, .* partition=iid"):
        divide(partitioner, targets=np.linspace(0, 1, 100))


def test_iid_divides_targets_of_any_kind():
    assert divide(IID(), targets=np.zeros((100, 3))).size(0) == 5


def test_shares_are_proportional_and_one_for_each_device():
    partition = divide(Proportional([3, 1, 1, 1]), devices=4)
    assert [len(rows) for rows in held(partition)] == [502, 167, 167, 167]
    assert torch.equal(torch.cat(held(partition)).sort().values, torch.arange(len(TARGETS)))
    with pytest.raises(ConfigError, match="has 4 entries for devices=5"):
        divide(Proportional([3, 1, 1, 1]), devices=5)
    for shares in ([], [1, 0], [1, float("nan")]):
        with pytest.raises(ConfigError, match="give each device a share above 0"):
            Proportional(shares)
    with pytest.raises(DataError, match="would hold no samples"):
        divide(Proportional([1, 1e-9]), devices=2)
