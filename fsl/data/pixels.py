"""Turns encoded images into normalised tensors: decodes once, caches, and scales by the training images."""

import hashlib
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsl.data.colours import Channels, Headers, channels_of, headers_of, tell_losses, undecodable
from fsl.data.task import Scaling
from fsl.data.unused_files import forget_unused, mark_used
from fsl.errors import DataError
from fsl.files import write_bytes
from fsl.private_files import cache_folder, close_file, private_folder

_BLOCK = 1024  # images in one step, so that an intermediate copy stays small


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes the images of a split into one uint8 array (N, H, W, C)."""

    column: str
    size: int | None  # pixels a side
    channels: Channels
    where: str

    @classmethod
    def of(
        cls, train: Any, test: Any, column: str, size: int | None, channels: Channels | None, where: str
    ) -> "ImageDecoder":
        """Make a decoder for a column of both splits; without `channels` it is grey only where every image is."""
        if size is not None and size < 1:
            raise DataError(f"data.size={size}: the pixels a side must be at least 1")
        if channels not in (None, 1, 3):
            raise DataError(f"data.channels={channels}: it must be 1 (grey), 3 (RGB) or null (as the images are)")
        for rows in (train, test):
            if column not in rows.features or not _holds_images(rows.features[column]):
                raise DataError(f"column '{column}' of {where} holds no images; name another with data.image_column")
        if channels is None:
            of_train, of_test = (_headers(rows, column, where) for rows in (train, test))
            channels = channels_of(of_train, of_test, where)
            tell_losses(of_train + of_test, where)
        return cls(column, size, channels, where)

    def __call__(self, rows: Any) -> np.ndarray:
        """Decode a split, or read an earlier run's result from the cache; DataError where images differ in size."""
        # The fingerprint follows the files' paths and times, the Hub's revision, and the selection of rows.
        key = f"{rows._fingerprint}|{self.column}|{self.size}|{self.channels}"
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return _cached(f"{name}.npy", len(rows), lambda: self._decode(rows))

    def stored_bytes(self, rows: Any) -> float | None:
        """Returns the mean bytes of a split's images as they are stored; None where there is none."""
        import pyarrow.compute as pc

        column = _encoded(rows, self.column).with_format("arrow")[:][self.column]
        lengths = pc.binary_length(pc.struct_field(column, "bytes"))
        files = column.filter(pc.is_null(lengths)) if lengths.null_count else ()
        total = (pc.sum(lengths).as_py() or 0) + sum(Path(str(file["path"])).stat().st_size for file in files)
        return total / len(rows) if len(rows) else None

    def _decode(self, rows: Any) -> np.ndarray:
        decoded = np.empty((0, 0, 0, self.channels), dtype=np.uint8)
        for index, row in enumerate(_encoded(rows, self.column)):
            pixels = self._pixels(row[self.column], index)
            if index == 0:
                decoded = np.empty((len(rows), *pixels.shape), dtype=np.uint8)
            if pixels.shape != decoded.shape[1:]:
                first, other = (f"{shape[1]}x{shape[0]}" for shape in (decoded.shape[1:], pixels.shape))
                raise DataError(
                    f"{self.where} has images of several sizes ({first}, {other}); set data.size to the pixels a side "
                    "to resize them to"
                )
            decoded[index] = pixels
        return decoded

    def _pixels(self, encoded: Any, index: int) -> np.ndarray:
        image = self._image(encoded, index).convert("L" if self.channels == 1 else "RGB")
        if self.size is not None and image.size != (self.size, self.size):
            image = image.resize((self.size, self.size))
        return np.asarray(image).reshape(image.height, image.width, self.channels)

    def _image(self, encoded: Any, index: int) -> Any:
        import datasets

        try:
            image = datasets.Image().decode_example(encoded)
        except Exception as error:
            raise undecodable(encoded, index, self.where, error) from error
        if image.mode.startswith(("I", "F")):
            raise DataError(
                f"{self.where} has images of more than 8 bits a channel (mode {image.mode}), which would be cut off; "
                "convert them to 8 bits"
            )
        return image


def scaling_of(train: np.ndarray) -> Scaling:
    """Compute each channel's mean and deviation of images (N, H, W, C) uint8, in levels from 0 to 255."""
    levels = np.arange(256, dtype=np.float64)
    counts = _histogram(train)
    mean = counts @ levels / counts.sum(axis=1)
    deviation = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1))
    return Scaling(tuple(mean.tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist()))


def normalised(train: np.ndarray, *others: np.ndarray, scaling: Scaling | None = None) -> list[Tensor]:
    """Normalise images (N, H, W, C) uint8 to float32 (N, C, H, W): minus each channel's mean, over its deviation.

    Mean and deviation are those of `train`, or the given `scaling`; DataError for one of other channels.
    """
    scaling = scaling_of(train) if scaling is None else scaling
    if len(scaling.mean) != train.shape[3]:
        raise DataError(
            f"mean={list(scaling.mean)}: the images have {train.shape[3]} channels; give one number for each"
        )
    levels = np.arange(256, dtype=np.float64)
    # 256 values to look up, one a level, instead of arithmetic on every pixel.
    table = (levels - np.array(scaling.mean)[:, None]) / np.array(scaling.std)[:, None]
    return [_looked_up(images, table.astype(np.float32)) for images in (train, *others)]


def _histogram(images: np.ndarray) -> np.ndarray:
    """Count how often each channel has each of the 256 levels, (C, 256)."""
    counts = np.zeros((images.shape[3], 256), dtype=np.int64)
    for start in range(0, len(images), _BLOCK):
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + _BLOCK, ..., channel].reshape(-1), minlength=256)
    return counts


def _looked_up(images: np.ndarray, table: np.ndarray) -> Tensor:
    count, height, width, channels = images.shape
    inputs = np.empty((count, channels, height, width), dtype=np.float32)
    for start in range(0, count, _BLOCK):
        for channel in range(channels):
            block = slice(start, start + _BLOCK)
            inputs[block, channel] = table[channel][images[block, ..., channel]]
    return torch.from_numpy(inputs)


def _headers(rows: Any, column: str, where: str) -> Headers:
    """Read the headers of a split's images, or an earlier run's result from the cache."""
    name = hashlib.sha256(f"{rows._fingerprint}|{column}|headers".encode()).hexdigest()[:32]
    path = cache_folder() / f"{name}.json"
    close_file(path)
    try:
        headers = Headers.from_json(path.read_text())
        mark_used(path)
        return headers
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not there yet, or damaged: it is made anew
    headers = headers_of((row[column] for row in _encoded(rows, column)), where)
    _keep(path, headers.to_json().encode())
    return headers


def _holds_images(feature: Any) -> bool:
    bare = set(feature) <= {"bytes", "path"} if isinstance(feature, dict) else False  # an Image without its type
    return bare or type(feature).__name__ == "Image" or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _encoded(rows: Any, column: str) -> Any:
    import datasets

    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _cached(name: str, rows: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    path = cache_folder() / name
    close_file(path)
    try:
        array = np.load(path, allow_pickle=False)
        if isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 4 and len(array) == rows:
            mark_used(path)
            return array
    except (OSError, ValueError, EOFError):
        pass  # not there yet, or damaged: it is made anew
    array = make()
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    _keep(path, content.getvalue())
    return array


def _keep(path: Path, content: bytes) -> None:
    with suppress(OSError):  # no room or no right to write: the next run repeats the work
        write_bytes(private_folder(path.parent) / path.name, content, private=True)
        forget_unused(path.parent)
