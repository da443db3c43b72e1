"""Data: examples, tasks, augmentation, and loading images; what is refused, and in which words."""

import os
import pickle
import time
import warnings

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset

from fsl.data import (
    Augmentation,
    DatasetExamples,
    TaskData,
    TensorExamples,
    as_task,
    cifar10,
    digits,
    from_dataset,
    hold_out,
    images,
)
from fsl.data.pixels import normalised
from fsl.errors import ConfigError, DataError


class Pairs(Dataset):
    """A user's Dataset of whatever it is given."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Noisy(Dataset):
    """A transform that draws anew each time."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.rand(2), index % 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FSL_CACHE", str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "arrow")
    return folder


def picture(level, size=(6, 4), mode="RGB"):
    pixels = np.full((size[1], size[0], 3), level, dtype=np.uint8)
    pixels[0, 0] = (255 - level, level // 2, 17)
    return Image.fromarray(pixels).convert(mode)


def write_split(folder, split, labels, feature=None, pictures=None, **more):
    pictures = [picture(10 * i % 256) for i in range(len(labels))] if pictures is None else pictures
    columns = {"picture": pictures, "kind": list(labels), **more}
    features = {"picture": datasets.Image(), "kind": feature or datasets.Value("int64")}
    features |= {name: datasets.Value("string") for name in more}
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(folder / f"{split}.parquet")
    return folder


def write_both(folder, train=(0, 1, 0, 1), test=(1, 0), **more):
    write_split(folder, "train", train, **more)
    return write_split(folder, "test", test, **more)


def store_as_bytes(folder, broken=None):
    """As a writer that knows nothing of `datasets` would have stored the images."""
    for split in ("train", "test"):
        table = datasets.Dataset.from_parquet(str(folder / f"{split}.parquet"))
        rows = table.cast_column("picture", datasets.Image(decode=False))["picture"]
        bare = [b"no image" if i == broken else row["bytes"] for i, row in enumerate(rows)]
        datasets.Dataset.from_dict({"picture": bare, "kind": table["kind"][:]}).to_parquet(folder / f"{split}.parquet")


def load(folder, **more):
    return images(str(folder), label_column="kind", **more)


# Examples


@pytest.fixture(params=[True, False], ids=["in memory", "as it is"])
def examples(request):
    items = [(torch.full((2, 3), float(i)), i % 3) for i in range(8)]
    return from_dataset(Pairs(*items), materialize=request.param)


def test_a_batch_is_the_rows_that_were_asked_for(examples):
    inputs, targets = examples.batch(torch.tensor([5, 0, 5]))
    assert inputs[:, 0, 0].tolist() == [5, 0, 5]
    assert targets.tolist() == [2, 0, 2]
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert (len(examples), examples.input_shape) == (8, (2, 3))


def test_a_batch_has_memory_of_its_own(examples):
    rows = torch.arange(8)
    inputs, targets = examples.batch(rows)
    inputs.zero_(), targets.zero_()
    inputs, targets = examples.batch(rows)
    assert inputs.any()
    assert targets.any()


def test_a_subset_counts_its_own_rows(examples):
    part = examples.subset(torch.tensor([7, 2])).subset(torch.tensor([1]))
    inputs, targets = part.batch(torch.tensor([0]))
    assert (len(part), inputs[0, 0, 0], targets[0], part.targets.tolist()) == (1, 2, 2, [2])


def test_pickled_examples_share_the_memory_of_a_read_only_buffer():
    examples = TensorExamples(torch.randn(50, 3, 4), torch.arange(50))
    buffers = []
    data = pickle.dumps(examples, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 1000
    stored = [bytes(buffer.raw()) for buffer in buffers]  # as Ray's object store has it: not to be written
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pickle.loads(data, buffers=stored)
    addresses = [np.frombuffer(buffer, np.uint8).ctypes.data for buffer in stored]
    assert [again.inputs.data_ptr(), again.targets.data_ptr()] == addresses
    assert torch.equal(again.inputs, examples.inputs)
    assert torch.equal(again.targets, examples.targets)


def test_random_transforms_are_drawn_anew_only_where_the_dataset_is_left_as_it_is():
    rows = torch.arange(6)
    kept, live = from_dataset(Noisy()), from_dataset(Noisy(), materialize=False)
    assert isinstance(live, DatasetExamples)
    assert torch.equal(kept.batch(rows)[0], kept.batch(rows)[0])
    assert not torch.equal(live.batch(rows)[0], live.batch(rows)[0])
    assert live.targets.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("materialize", [True, False])
def test_numbers_of_numpy_and_python_become_what_losses_take(materialize):
    numpy = from_dataset(Pairs((np.zeros(2), np.int32(1)), (np.ones(2), np.int32(0))), materialize)
    python = from_dataset(Pairs((torch.zeros(2), 0.5), (torch.ones(2), 1.5)), materialize)
    assert [t.dtype for t in (*numpy.batch(torch.tensor([0])), numpy.targets)] == [
        torch.float32,
        torch.int64,
        torch.int64,
    ]
    assert [t.dtype for t in (*python.batch(torch.tensor([0])), python.targets)] == [torch.float32] * 3


@pytest.mark.parametrize(
    ("items", "line"),
    [
        ([], "Pairs has no length or no items; give a map-style Dataset"),
        ([torch.zeros(2)], r"item 0 of Pairs is a Tensor, no pair \(input, target\); give a Dataset whose items carry"),
        ([(torch.zeros(2), 0), torch.zeros(2)], "item 1 of Pairs is a Tensor, no pair"),
        (
            [(torch.zeros(2), 0), (torch.zeros(3), 1)],
            r"the inputs of Pairs cannot be stacked \(.*\); give inputs",
        ),
        ([(picture(0), 0), (picture(1), 1)], r"the inputs of Pairs cannot be stacked \(.*PIL.*\)"),
        ([(torch.zeros(2), "cat"), (torch.zeros(2), "dog")], r"the targets of Pairs .* must be numbered first"),
    ],
)
@pytest.mark.parametrize("materialize", [True, False])
def test_a_dataset_that_cannot_be_batched_is_refused(items, line, materialize):
    with pytest.raises(DataError, match=line) as refused:
        from_dataset(Pairs(*items), materialize).batch(torch.arange(len(items)))
    assert "\n" not in str(refused.value)


def test_inputs_without_targets_are_refused():
    with pytest.raises(DataError, match="there are 3 inputs and 2 targets"):
        TensorExamples(torch.zeros(3), torch.zeros(2))


# Tasks


def task(rows=100):
    examples = TensorExamples(torch.arange(rows, dtype=torch.float32)[:, None], torch.arange(rows) % 4)
    return TaskData("counted", examples, None, classes=4, groups=np.arange(rows) // 10)


def test_validation_is_taken_off_training_and_ids_follow():
    data = hold_out(task(), 0.2, seed=3)
    kept, held = (examples.inputs[:, 0] for examples in (data.train, data.validation))
    assert (len(kept), len(held)) == (80, 20)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(100.0))
    assert (data.groups == kept.numpy() // 10).all()


def test_validation_is_drawn_from_the_seed():
    first, same, other = (hold_out(task(), 0.2, seed).validation.inputs for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_no_validation_share_changes_nothing():
    data = task()
    assert hold_out(data, 0.0, seed=0) is data


@pytest.mark.parametrize("share", [-0.1, 1.0, 0.001, 0.999, float("nan")])
def test_a_validation_share_that_leaves_a_side_empty_is_refused(share):
    with pytest.raises(DataError, match=rf"data\.validation={share}: a share of the training data in \[0, 1\)"):
        hold_out(task(), share, seed=0)


def test_a_users_dataset_is_a_task():
    data = as_task(Pairs((torch.zeros(2), 0), (torch.ones(2), 2)), Pairs((torch.zeros(2), 1)))
    assert (data.classes, data.input_shape, len(data.test)) == (3, (2,), 1)


# Augmentation


def augmented_one_by_one(inputs, crop, flip, generator):
    offsets = torch.randint(2 * crop + 1, (2, len(inputs), 1), generator=generator)
    flips = torch.rand(len(inputs), 1, generator=generator) < 0.5 if flip else torch.zeros(len(inputs), 1)
    out = []
    for image, top, left, flipped in zip(inputs, offsets[0], offsets[1], flips):
        padded = F.pad(image, (crop,) * 4)
        cut = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        out.append(cut.flip(2) if flipped else cut)
    return torch.stack(out)


@pytest.mark.parametrize(("crop", "flip"), [(0, True), (2, False), (2, True), (9, True)])
def test_augmentation_equals_cropping_and_flipping_one_by_one(crop, flip):
    inputs = torch.randn(16, 3, 5, 7)
    vectorised, slow = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    result = Augmentation(crop, flip)(inputs, vectorised)
    assert torch.equal(result, augmented_one_by_one(inputs, crop, flip, slow))
    assert result.is_contiguous()


def test_augmentation_that_does_nothing_gives_the_images_back():
    inputs = torch.randn(4, 3, 5, 7)
    assert torch.equal(Augmentation()(inputs, torch.Generator()), inputs)


def test_a_negative_crop_is_refused():
    with pytest.raises(ConfigError, match=r"augment\.crop=-1: the pixels of padding cannot be negative"):
        Augmentation(crop=-1)


def test_augmentation_of_what_is_no_image_is_refused():
    with pytest.raises(ConfigError, match=r"augment wants image batches \(B, C, H, W\), not \(4, 10\); turn it off"):
        Augmentation(crop=1)(torch.zeros(4, 10), torch.Generator())


# Loading


def test_digits_are_split_alike_in_every_class():
    data = digits()
    counts = [torch.bincount(examples.targets, minlength=10) for examples in (data.train, data.test)]
    from sklearn.datasets import load_digits

    everything = torch.bincount(torch.as_tensor(load_digits().target))
    assert torch.equal(counts[0] + counts[1], everything)
    assert torch.equal(counts[1], (everything * 0.2).long())
    assert (data.classes, data.input_shape) == (10, (1, 8, 8))
    assert torch.equal(data.test.inputs, digits().test.inputs)


def test_normalised_training_images_have_mean_zero_and_deviation_one():
    images = np.random.default_rng(0).integers(256, size=(3000, 5, 4, 3), dtype=np.uint8)
    images[..., 2] = 77  # a channel that never changes
    train, test = normalised(images, images[:7])
    assert train.shape == (3000, 3, 5, 4)
    assert train.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(train.std(dim=(0, 2, 3)), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4)
    slow = (images - images.mean(axis=(0, 1, 2))) / np.maximum(images.std(axis=(0, 1, 2)), 1e-9)
    assert np.allclose(train.numpy()[:, :2], slow.transpose(0, 3, 1, 2)[:, :2], atol=1e-5)
    assert torch.equal(test, train[:7])


def test_a_folder_of_parquet_files_is_read_by_column_type(tmp_path):
    kind = datasets.ClassLabel(names=["cat", "dog", "newt"])
    data = images(str(write_both(tmp_path / "pets", feature=kind)))
    assert (data.name, data.classes, data.input_shape) == ("pets", 3, (3, 4, 6))
    assert (data.train.targets.tolist(), data.test.targets.tolist()) == ([0, 1, 0, 1], [1, 0])


def test_a_folder_called_test_is_no_test_split(tmp_path):
    assert len(load(write_both(tmp_path / "test")).train) == 4


@pytest.mark.parametrize(
    ("train", "test", "feature"),
    [([7, 3, 100, 3], [100, 7], None), (["b", "a", "c", "a"], ["c", "b"], datasets.Value("string"))],
    ids=["numbers", "texts"],
)
def test_labels_are_numbered_in_sorted_order(tmp_path, train, test, feature):
    data = load(write_both(tmp_path, train, test, feature=feature))
    assert (data.train.targets.tolist(), data.test.targets.tolist(), data.classes) == ([1, 0, 2, 0], [2, 1], 3)


def test_a_limit_of_the_test_rows_leaves_the_training_rows(tmp_path):
    data = load(write_both(tmp_path, train=[5, 6, 7, 5], test=[7, 6]), test_limit=1)
    assert (len(data.train), len(data.test)) == (4, 1)


def test_a_limit_takes_the_first_rows_and_leaves_the_classes(tmp_path):
    data = load(write_both(tmp_path, train=[5, 6, 7, 5], test=[7, 6]), limit=2)
    assert (data.train.targets.tolist(), data.test.targets.tolist(), data.classes) == ([0, 1], [2, 1], 3)


def test_a_validation_split_stands_in_for_a_test_split(tmp_path):
    write_split(tmp_path, "train", [0, 1])
    assert len(load(write_split(tmp_path, "validation", [0, 1, 1])).test) == 3


def test_a_test_split_can_be_named(tmp_path):
    write_both(tmp_path, test=[-1, -1])
    assert len(load(write_split(tmp_path, "validation", [0, 1, 1]), test_split="validation").test) == 3


def test_a_folder_of_images_per_class_has_each_class_on_both_sides(tmp_path, caplog):
    for name, level in (("ant", 10), ("bee", 120), ("cow", 240)):
        (tmp_path / name).mkdir()
        for i in range(10):
            picture(level + i).save(tmp_path / name / f"{i}.png")
    data = images(str(tmp_path))
    assert torch.bincount(data.train.targets).tolist() == [8, 8, 8]
    assert torch.bincount(data.test.targets).tolist() == [2, 2, 2]
    assert "has no test split: 6 of its 30 rows are held out for tests" in caplog.text
    assert torch.equal(images(str(tmp_path), limit=5).test.targets, data.test.targets)


def test_natural_ids_are_those_of_the_rows(tmp_path):
    write_split(tmp_path, "train", [0, 1, 0], writer=["x", "y", "x"])
    write_split(tmp_path, "test", [0, 1], writer=["x", "y"])
    assert load(tmp_path, group_column="writer").groups.tolist() == ["x", "y", "x"]
    assert load(tmp_path, group_column="writer", limit=2).groups.tolist() == ["x", "y"]


def test_images_stay_grey_or_become_what_was_asked_for(tmp_path):
    grey = [picture(i, mode="L") for i in range(4)]
    write_split(tmp_path, "train", [0, 1, 0, 1], pictures=grey)
    write_split(tmp_path, "test", [0, 1], pictures=grey[:2])
    shapes = [load(tmp_path, channels=c, size=s).input_shape for c, s in ((None, None), (3, None), (1, 8))]
    assert shapes == [(1, 4, 6), (3, 4, 6), (1, 8, 8)]


def test_images_of_several_sizes_are_resized_on_request(tmp_path):
    write_split(tmp_path, "train", [0, 1], pictures=[picture(1), picture(2, size=(9, 9))])
    write_split(tmp_path, "test", [0, 1])
    assert load(tmp_path, size=5).train.inputs.shape == (2, 3, 5, 5)


def test_images_stored_as_bare_bytes_are_images(tmp_path):
    store_as_bytes(write_both(tmp_path))
    assert load(tmp_path, image_column="picture").input_shape == (3, 4, 6)


# The cache


def test_images_are_decoded_once(tmp_path, own_cache, monkeypatch):
    first = load(write_both(tmp_path))
    assert len(list(own_cache.glob("*.npy"))) == 2
    monkeypatch.setattr("fsl.data.pixels.ImageDecoder._decode", lambda self, rows: pytest.fail("decoded again"))
    assert torch.equal(load(tmp_path).train.inputs, first.train.inputs)


def test_a_changed_file_is_decoded_again(tmp_path):
    before = load(write_both(tmp_path)).train.inputs
    write_split(tmp_path, "train", [0, 1, 0, 1], pictures=[picture(200 - i) for i in range(4)])
    os.utime(tmp_path / "train.parquet", (1, 1))
    assert not torch.equal(load(tmp_path).train.inputs, before)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00broken", None], ids=["empty", "broken", "of another"])
def test_a_damaged_cache_is_made_anew(tmp_path, own_cache, damage):
    before = load(write_both(tmp_path)).train.inputs
    for file in own_cache.glob("*.npy"):
        np.save(file, np.zeros((99, 4, 6, 3), np.uint8)) if damage is None else file.write_bytes(damage)
    assert torch.equal(load(tmp_path).train.inputs, before)


def test_what_nobody_used_for_a_month_leaves_the_cache(tmp_path, own_cache):
    load(write_both(tmp_path / "old"))
    load(write_both(tmp_path / "used"))
    mine = own_cache / "notes.json"
    mine.write_text("mine")
    for path in own_cache.glob("*.*"):
        os.utime(path, (time.time() - 31 * 86400.0,) * 2)
    load(tmp_path / "used")
    used = {path.name for path in own_cache.glob("*.npy") if path.stat().st_mtime > time.time() - 86400.0}
    assert len(used) == 2
    load(write_both(tmp_path / "new"))
    kept = {path.name for path in own_cache.glob("*.npy")}
    assert used < kept
    assert len(kept) == 4
    assert mine.exists()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("FSL_CACHE", str(blocked / "cache"))
    assert len(load(write_both(tmp_path / "data")).train) == 4


# Refusals


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, r"data\.path \(a local folder\) or data\.name \(on the Hub\) must be given, and not both"),
        ({"path": "a", "name": "b"}, "and not both"),
        ({"path": "nowhere"}, r"data\.path=nowhere: there is no such folder; give one with train\.parquet"),
        ({"name": "nobody/nothing"}, r"the data set 'nobody/nothing' cannot be had from the Hub .* check the name and"),
    ],
)
def test_data_that_is_not_there_is_refused(options, line):
    with pytest.raises(DataError, match=line) as refused:
        images(**options)
    assert "\n" not in str(refused.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read as Parquet files or a folder of images .* give a folder with"):
        images(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"limit": 0}, r"data\.limit=0: the number of training rows must be at least 1"),
        ({"test_limit": 0}, r"data\.test_limit=0: the number of test rows must be at least 1"),
        ({"size": 0}, r"data\.size=0: the pixels a side must be at least 1"),
        ({"channels": 2}, r"data\.channels=2: it must be 1 \(grey\), 3 \(RGB\) or null"),
        ({"image_column": "img"}, r"no column 'img' for the images \(columns: picture, kind\); .*data\.image_column"),
        ({"image_column": "kind"}, r"column 'kind' of .* holds no images; name another with data\.image_column"),
        ({"group_column": "writer"}, r"no column 'writer' for the groups .*data\.group_column"),
        ({"test_split": "exam"}, r"data\.test_split=exam: .* has train, test; name one of them beside train, or null"),
        ({"test_split": "train"}, r"data\.test_split=train: .* beside train"),
    ],
)
def test_an_option_that_does_not_fit_the_data_is_refused(tmp_path, options, line):
    with pytest.raises(DataError, match=line) as refused:
        load(write_both(tmp_path), **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("train", "test", "feature", "line"),
    [
        ([0, -1], [0, 1], None, r"has rows without a label \(kind = -1\); leave those rows out, or .*data\.test_split"),
        ([0, 1], [-1, -1], None, r"has rows without a label \(kind = -1\)"),
        ([0, None], [0, 1], None, r"has rows without a label \(kind = null\)"),
        ([0, 0], [0, 0], None, "has labels of 1 class; classification needs at least 2"),
        ([0, 1], [0, 9], None, "has labels that are none of the 2 classes of training: 9"),
        ([0.5, 1.5], [0.5, 1.5], "float32", "column 'kind' of .* has no class labels but float32; name a column of"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(tmp_path, train, test, feature, line):
    with pytest.raises(DataError, match=line) as refused:
        load(write_both(tmp_path, train, test, feature=feature and datasets.Value(feature)))
    assert "\n" not in str(refused.value)


def test_data_without_a_label_column_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no label column \(columns: picture, kind\); name it with"):
        images(str(write_both(tmp_path)))


def test_data_without_a_training_split_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no training split \(there are: test\); name a file train\.parquet"):
        load(write_split(tmp_path, "test", [0, 1]))


@pytest.mark.parametrize(
    ("share", "line"),
    [(0.0, r"test_share=0\.0: .* has no test split; give a share in \(0, 1\)"), (0.1, r"test_share=0\.1: no class of")],
)
def test_a_share_that_holds_nothing_out_is_refused(tmp_path, share, line):
    with pytest.raises(DataError, match=line):
        load(write_split(tmp_path, "train", [0, 1, 0, 1]), test_share=share)


def test_images_of_several_sizes_are_refused(tmp_path):
    write_split(tmp_path, "train", [0, 1], pictures=[picture(1), picture(2, size=(9, 8))])
    with pytest.raises(DataError, match=r"images of several sizes \(6x4, 9x8\); set data\.size to the pixels a side"):
        load(write_split(tmp_path, "test", [0, 1]))


def test_test_images_of_another_size_are_refused(tmp_path):
    write_split(tmp_path, "train", [0, 1])
    with pytest.raises(DataError, match=r"differ in size \(6x4 and 9x8\); set data\.size"):
        load(write_split(tmp_path, "test", [0, 1], pictures=[picture(2, size=(9, 8))] * 2))


def test_images_of_sixteen_bits_are_refused(tmp_path):
    deep = [Image.fromarray(np.full((4, 6), 1000 * i, dtype=np.uint16)) for i in range(2)]
    write_split(tmp_path, "train", [0, 1], pictures=deep)
    with pytest.raises(DataError, match=r"images of more than 8 bits a channel \(mode I;16\).*convert them to 8 bits"):
        load(write_split(tmp_path, "test", [0, 1], pictures=deep))


def test_a_broken_image_is_named(tmp_path):
    store_as_bytes(write_both(tmp_path), broken=2)
    with pytest.raises(DataError, match=r"image 2 of a split of .* cannot be decoded \(UnidentifiedImageError: .*repa"):
        load(tmp_path, image_column="picture")


def test_files_that_do_not_fit_together_are_refused_with_the_reason(tmp_path):
    write_split(tmp_path, "train", [0, 1])
    datasets.Dataset.from_dict({"other": [1, 2]}).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"cannot be read as Parquet .*other.*; give a folder with") as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


# The real thing


@pytest.mark.slow
def test_cifar10_is_read_from_a_folder(cifar10_folder):
    data = cifar10(str(cifar10_folder), limit=2000)
    assert (data.name, data.classes, data.input_shape) == ("cifar10", 10, (3, 32, 32))
    assert (len(data.train), len(data.test)) == (2000, 10_000)
    assert data.train.inputs.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (data.train.inputs.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05


@pytest.mark.shows  # of some rows: above
def test_cifar10_whole_is_balanced_and_normalised(cifar10_folder):
    data = cifar10(str(cifar10_folder))
    assert torch.bincount(data.train.targets).tolist() == [5000] * 10
    assert data.train.inputs.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (data.train.inputs.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_cifar10_in_another_layout_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no column 'img' for the images \(columns: picture, kind\)"):
        cifar10(str(write_both(tmp_path)))


def test_digits_are_those_of_scikit_learn(monkeypatch):
    fast = digits()
    monkeypatch.setattr("fsl.data.loaders.find_spec", lambda name: None)  # where it keeps them elsewhere
    slow = digits()
    for one, other in ((fast.train, slow.train), (fast.test, slow.test)):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
