"""Loads image data from a folder, from the Hub, or from scikit-learn."""

import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsl.argument_types import checks_types
from fsl.data.colours import Channels
from fsl.data.columns import Labels, find_column, natural_ids
from fsl.data.examples import TensorExamples
from fsl.data.folders import check_all_read, check_folder, look
from fsl.data.pixels import ImageDecoder, normalised, scaling_of
from fsl.data.rows_for_tests import refuse_no_rows, test_rows
from fsl.data.task import Scaling, TaskData
from fsl.errors import DataError
from fsl.private_files import private_umask

log = logging.getLogger(__name__)


@checks_types("data.", DataError)
def digits(test_share: float = 0.2) -> TaskData:
    """Load scikit-learn's embedded handwritten digits: 1,797 images, (1, 8, 8), 10 classes.

    The test set has the same share of each class, and the same images whatever the run's seed.
    """
    pixels, labels = _digits()
    images = (pixels.reshape(-1, 8, 8, 1) * (255 / 16)).round().astype(np.uint8)
    kept, held = test_rows(labels, test_share, "digits")
    return _task("digits", (images[kept], labels[kept]), (images[held], labels[held]), tuple(map(str, range(10))))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Read pixels (1797, 64) from 0 to 16, and labels, from scikit-learn's file, since its import takes seconds."""
    found = find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # for a scikit-learn that keeps the file elsewhere

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels


@checks_types("data.", DataError)
def cifar10(
    path: str | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    classes: list[str] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> TaskData:
    """Load CIFAR-10 (Krizhevsky 2009), (3, 32, 32), 10 classes, from a local folder of Parquet files or the Hub.

    `path` holds train.parquet and test.parquet in the layout of the Hub's uoft-cs/cifar10 (columns `img`, `label`).
    `limit` takes the first training rows only, `test_limit` the first test rows; `classes`, `mean` and `std` as in
    `images`.
    """
    name = "uoft-cs/cifar10" if path is None else None
    return images(
        path,
        name,
        None,
        "img",
        "label",
        channels=3,
        limit=limit,
        test_limit=test_limit,
        classes=classes,
        mean=mean,
        std=std,
    )


@checks_types("data.", DataError)
def images(
    path: str | None = None,
    name: str | None = None,
    subset: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    size: int | None = None,
    channels: Channels | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    test_split: str | None = None,
    test_share: float = 0.2,
    classes: list[str] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> TaskData:
    """Load any image classification data set from a local folder (`path`) or from the Hub (`name`).

    A folder holds Parquet files named by split (train*.parquet, test*.parquet), or a folder of images per class.
    Columns are found by their type unless named. `size` resizes images to so many pixels a side, `channels` makes
    them grey (1) or RGB (3), `limit` and `test_limit` take the first rows of each. Tests use `test_split`, by default
    `test` or else `validation`; without either it holds out `test_share` of each class from training, the same rows
    whatever the seed and `limit`. `group_column` has natural ids. `classes` names the classes in their order, of which
    the data may lack some (without it, the training data's own, sorted); `mean` and `std` of each channel, in levels
    from 0 to 255, take the place of the training images' own. DataError for unreadable data or data without labels.
    """
    if (path is None) == (name is None):
        raise DataError("data.path (a local folder) or data.name (on the Hub) must be given, and not both")
    refuse_no_rows(limit, test_limit)
    where = str(path if path is not None else name)
    splits = (
        _open_folder(Path(where).expanduser(), classes is not None) if path is not None else open_hub(where, subset)
    )
    train, test = train_and_test(splits, test_split, where)
    image_column = find_column(train, image_column, "Image", "image", where)
    labels = Labels.of(train, find_column(train, label_column, "ClassLabel", "label", where), where, classes)
    if test is None:
        kept, held = test_rows(labels.indices(train), test_share, where)
        log.warning("%s has no test split: %d of its %d rows are held out for tests", where, len(held), len(train))
        train, test = train.select(kept), train.select(held)
    of_train, of_test = labels.indices(train), labels.indices(test)
    labels.tell_unseen(of_train, of_test)
    if limit is not None:
        train = train.select(range(min(limit, len(train))))
    if test_limit is not None:
        test = test.select(range(min(test_limit, len(test))))
    groups = None if group_column is None else natural_ids(train, group_column, where)
    decoder = ImageDecoder.of(train, test, image_column, size, channels, where)
    training, testing = (decoder(train), of_train[: len(train)]), (decoder(test), of_test[: len(test)])
    title = Path(where).expanduser().resolve().name if path is not None else where.rpartition("/")[2]
    scaling = _scaling(mean, std)
    task = _task(title, training, testing, labels.class_names, groups, scaling)
    return replace(task, stored_bytes=decoder.stored_bytes(train))


def _scaling(mean: list[float] | None, std: list[float] | None) -> Scaling | None:
    if (mean is None) != (std is None):
        raise DataError(f"data.mean={mean} and data.std={std} belong together; give both, or none")
    return None if mean is None or std is None else Scaling(tuple(map(float, mean)), tuple(map(float, std)))


def _open_folder(path: Path, given: bool = False) -> Any:
    import datasets

    if not path.is_dir():
        raise DataError(f"data.path={path}: there is no such folder; give one with train.parquet and test.parquet")
    found = look(path)
    check_folder(found, str(path), given)
    try:
        with _quiet(), private_umask():  # the library caches what it read
            # `datasets` takes no labels from images in one folder.
            labelled = {"drop_labels": False} if given and not (found.parquet or found.described) else {}
            kind = "parquet" if found.parquet else "imagefolder"
            splits = datasets.load_dataset(kind, data_dir=str(path), **labelled)
    except Exception as error:
        line = " ".join(str(error.__cause__ or error).split())[:300]  # `datasets` wraps the error
        raise DataError(
            f"data.path={path} cannot be read as Parquet files or a folder of images ({line}); give a folder with "
            "train.parquet and test.parquet, or with a folder of images per class"
        ) from None
    check_all_read(found, 0 if found.parquet else sum(map(len, splits.values())), str(path))
    return splits


def open_hub(name: str, subset: str | None) -> Any:
    """Returns the splits of a data set on the Hub; DataError, in one line, where it cannot be had."""
    import datasets

    try:
        with _quiet():
            return datasets.load_dataset(name, subset)
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(
            f"the data set '{name}' cannot be had from the Hub ({type(error).__name__}: {line}); check the name and "
            "the network, or give a local folder as data.path"
        ) from None


class _quiet:  # noqa: N801 - reads as a statement
    """Silences the progress bars of `datasets` while a run's own is on the screen."""

    def __enter__(self) -> None:
        from datasets.utils.logging import disable_progress_bar, is_progress_bar_enabled

        self.hub = logging.getLogger("huggingface_hub")
        self.level = self.hub.level
        self.hub.setLevel(logging.CRITICAL)  # hides its retries; the final error is enough
        self.was_on = is_progress_bar_enabled()
        disable_progress_bar()

    def __exit__(self, *exception: object) -> None:
        from datasets.utils.logging import enable_progress_bar

        self.hub.setLevel(self.level)
        if self.was_on:
            enable_progress_bar()


def train_and_test(splits: Any, test_split: str | None, where: str) -> tuple[Any, Any | None]:
    """Returns the training split, and the test split if there is one."""
    found = ", ".join(splits)
    if "train" not in splits:
        raise DataError(f"{where} has no training split (there are: {found}); name a file train.parquet")
    if test_split is not None and (test_split not in splits or test_split == "train"):
        raise DataError(f"data.test_split={test_split}: {where} has {found}; name one of them beside train, or null")
    name = test_split or next((split for split in ("test", "validation") if split in splits), None)
    for split in ("train", name):
        if split is not None and not len(splits[split]):
            raise DataError(f"the split {split} of {where} has no rows; give other data")
    return splits["train"], None if name is None else splits[name]


def _task(
    title: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    names: tuple[str, ...],
    groups: np.ndarray | None = None,
    scaling: Scaling | None = None,
) -> TaskData:
    if train[0].shape[1:] != test[0].shape[1:]:
        sizes = " and ".join(f"{images.shape[2]}x{images.shape[1]}" for images, _ in (train, test))
        raise DataError(f"training and test images of {title} differ in size ({sizes}); set data.size")
    scaled = scaling is None
    scaling = scaling_of(train[0]) if scaling is None else scaling
    inputs = normalised(train[0], test[0], scaling=scaling)
    examples = [TensorExamples(i, torch.from_numpy(t.astype(np.int64))) for i, (_, t) in zip(inputs, (train, test))]
    return TaskData(
        title,
        examples[0],
        examples[1],
        len(names),
        groups=groups,
        class_names=names,
        scaling=scaling,
        scaled=scaled,
    )
