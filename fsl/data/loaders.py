"""Loading image data: decoded and normalised once, through `datasets` and Pillow."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fsl.data.examples import TensorExamples
from fsl.data.task import TaskData
from fsl.errors import DataError
from fsl.files import write_bytes

Channels = Literal[1, 3]
_SPLITS = ("train", "test", "validation", "valid", "val")


def digits() -> TaskData:
    """scikit-learn's handwritten digits, embedded in it: 1,437 training and 360 test images, (1, 8, 8), 10 classes.

    The test set is every fifth image, whatever the run's seed.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) * (255 / 16)).round().astype(np.uint8)
    test = np.arange(len(labels)) % 5 == 4
    return _task("digits", (images[~test], labels[~test]), (images[test], labels[test]), classes=10)


def cifar10(path: str | None = None, limit: int | None = None) -> TaskData:
    """CIFAR-10 (Krizhevsky 2009), (3, 32, 32), 10 classes: from a local folder of Parquet files, or from the Hub.

    `path` holds train.parquet and test.parquet in the layout of the Hub's uoft-cs/cifar10 (columns `img`, `label`).
    `limit` takes the first training rows only.
    """
    name = "uoft-cs/cifar10" if path is None else None
    return images(path=path, name=name, image_column="img", label_column="label", limit=limit)


def images(
    path: str | None = None,
    name: str | None = None,
    subset: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    size: int | None = None,
    channels: Channels = 3,
    limit: int | None = None,
    test_share: float = 0.2,
) -> TaskData:
    """Any image classification data set: a local folder (`path`), or a name on the Hub (`name`).

    A folder holds Parquet files named by split (train*.parquet, test*.parquet), or a folder of images per class.
    Columns are found by their type unless named. `size` resizes images to so many pixels a side, `channels` makes
    them grey (1) or RGB (3), `limit` takes the first training rows. Without a test split the last `test_share` of
    the training rows are held out. `group_column` has natural ids.
    """
    if (path is None) == (name is None):
        raise DataError("data.path (a local folder) or data.name (on the Hub) must be given, and not both")
    splits = _open_folder(Path(str(path))) if path is not None else _open_hub(str(name), subset)
    where = str(path if path is not None else name)
    train = splits["train"]
    if limit is not None:
        if limit < 1:
            raise DataError(f"data.limit={limit}: the number of training rows must be at least 1")
        train = train.select(range(min(limit, len(train))))
    test = next((splits[s] for s in ("test", "validation", "valid", "val") if s in splits), None)
    image_column = _column(train, image_column, "Image", "image", where)
    label_column = _column(train, label_column, "ClassLabel", "label", where)
    if test is None:
        if not 0 < test_share < 1:
            raise DataError(f"data.test_share={test_share}: {where} has no test split; give a share in (0, 1)")
        kept = round(len(train) * (1 - test_share))
        train, test = train.select(range(kept)), train.select(range(kept, len(train)))
    names = sorted(set(train.unique(label_column)), key=str)
    groups = None
    if group_column is not None:
        groups = np.asarray(train[_column(train, group_column, "", "group", where)][:])
    decode = _Decoder(image_column, size, channels, where)
    training, testing = ((decode(rows), _labels(rows, label_column, names, where)) for rows in (train, test))
    label = train.features[label_column]
    classes = max(getattr(label, "num_classes", 0) or 0, len(names))
    if classes < 2:
        raise DataError(f"{where} has labels of one class only; classification needs at least 2")
    return _task(Path(where).name, training, testing, classes=classes, groups=groups)


def _open_folder(path: Path) -> Any:
    import datasets

    if not path.is_dir():
        raise DataError(f"data.path={path}: there is no such folder; give one with train.parquet and test.parquet")
    parquet = {s: sorted(map(str, path.glob(f"{s}*.parquet"))) for s in _SPLITS}
    found = {split: files for split, files in parquet.items() if files}
    try:
        with _quiet():
            if found:
                if "train" not in found:
                    raise DataError(f"data.path={path}: there is no train*.parquet in it")
                return datasets.load_dataset("parquet", data_files=found)
            return datasets.load_dataset("imagefolder", data_dir=str(path))
    except DataError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise DataError(f"data.path={path} cannot be read as Parquet files or a folder of images: {line}") from None


def _open_hub(name: str, subset: str | None) -> Any:
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
    """No progress bars of `datasets` while a run's own is on the screen."""

    def __enter__(self) -> None:
        from datasets.utils.logging import disable_progress_bar, is_progress_bar_enabled

        self.hub = logging.getLogger("huggingface_hub")
        self.level = self.hub.level
        self.hub.setLevel(logging.CRITICAL)  # its retries; what went wrong is told once, at the end
        self.was_on = is_progress_bar_enabled()
        disable_progress_bar()

    def __exit__(self, *exception: object) -> None:
        from datasets.utils.logging import enable_progress_bar

        self.hub.setLevel(self.level)
        if self.was_on:
            enable_progress_bar()


def _column(rows: Any, name: str | None, kind: str, what: str, where: str) -> str:
    columns = list(rows.features)
    if name is not None:
        if name not in columns:
            raise DataError(
                f"{where} has no column '{name}' for the {what}s (columns: {', '.join(columns)}); give other data, "
                f"or name the column with data=images data.{what}_column"
            )
        return name
    found = [c for c in columns if type(rows.features[c]).__name__ == kind] or [c for c in columns if c == what]
    if len(found) != 1:
        raise DataError(
            f"{where} has {'no' if not found else 'several'} {what} column{'s' if found else ''} (columns: "
            f"{', '.join(columns)}); name it with data.{what}_column"
        )
    return found[0]


def _labels(rows: Any, column: str, names: list[Any], where: str) -> np.ndarray:
    values = np.asarray(rows[column][:])
    if np.issubdtype(values.dtype, np.integer):
        if values.size and values.min() < 0:
            raise DataError(f"{where} has rows without a label ({column} = {values.min()}); leave such splits out")
        return values.astype(np.int64)
    if values.dtype.kind not in "UO" or any(n is None for n in names):
        raise DataError(f"column '{column}' of {where} has no class labels; name another with data.label_column")
    index = {name: i for i, name in enumerate(names)}
    unknown = sorted({str(v) for v in values if v not in index})
    if unknown:
        raise DataError(f"the test split of {where} has labels that training has not: {', '.join(unknown[:5])}")
    return np.array([index[v] for v in values], dtype=np.int64)


class _Decoder:
    """Images of a split as one uint8 array (N, H, W, C), decoded once and cached as a file."""

    def __init__(self, column: str, size: int | None, channels: Channels, where: str):
        self.column, self.size, self.mode, self.where = column, size, {1: "L", 3: "RGB"}[channels], where

    def __call__(self, rows: Any) -> np.ndarray:
        key = hashlib.sha256(f"{rows._fingerprint}|{self.column}|{self.size}|{self.mode}".encode()).hexdigest()[:32]
        return _cached(f"{key}.npy", lambda: self._decode(rows))

    def _decode(self, rows: Any) -> np.ndarray:
        decoded = None
        for index, row in enumerate(rows.select_columns([self.column])):
            image = row[self.column]
            if not hasattr(image, "convert"):
                raise DataError(
                    f"column '{self.column}' of {self.where} holds no images; name another with data.image_column"
                )
            image = image.convert(self.mode)
            if self.size is not None and image.size != (self.size, self.size):
                image = image.resize((self.size, self.size))
            pixels = np.asarray(image)
            if decoded is None:
                decoded = np.empty((len(rows), *pixels.shape), dtype=np.uint8)
            if pixels.shape != decoded.shape[1:]:
                raise DataError(
                    f"{self.where} has images of several sizes ({decoded.shape[1:3]}, {pixels.shape[:2]}); set "
                    "data.size to the pixels a side to resize them to"
                )
            decoded[index] = pixels
        if decoded is None:
            raise DataError(f"{self.where} has a split without rows")
        return decoded if decoded.ndim == 4 else decoded[..., None]


def _cached(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    folder = Path(os.environ.get("FSL_CACHE", Path.home() / ".cache" / "fsl"))
    path = folder / name
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        pass  # not there yet, or damaged: it is made anew
    array = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {array.shape}, }}"
        padding = " " * (-(10 + len(header) + 1) % 64)
        text = f"{header}{padding}\n".encode()
        write_bytes(path, b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + array.tobytes())
    except OSError:
        return array  # no room or no right to write: the next run decodes again
    return array


def _task(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: int,
    groups: np.ndarray | None = None,
) -> TaskData:
    """Normalise by the training set's mean and standard deviation per channel; NHWC uint8 becomes NCHW float32."""
    pixels = train[0].reshape(-1, train[0].shape[-1])
    mean, deviation = pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1.0)

    def examples(images: np.ndarray, labels: np.ndarray) -> TensorExamples:
        inputs = torch.empty(len(images), images.shape[3], *images.shape[1:3])
        for channel in range(images.shape[3]):
            inputs[:, channel] = torch.from_numpy(images[..., channel])
            inputs[:, channel].sub_(float(mean[channel])).div_(float(scale[channel]))
        return TensorExamples(inputs, torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)))

    return TaskData(name, examples(*train), examples(*test), classes, groups=groups)
