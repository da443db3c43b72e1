"""Finds out from headers alone which images of a split are grey and which coloured."""

import io
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fsl.errors import DataError

log = logging.getLogger(__name__)

Channels = Literal[1, 3]

GREY = ("1", "L", "LA", "La")  # modes of Pillow; all others are coloured, palettes and CMYK too
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_MOVING = ("GIF", "WEBP", "TIFF", "PNG", "MPO")  # formats that may have several frames


@dataclass(frozen=True)
class Headers:
    """Counts a split's images by mode, and those with an alpha channel or several frames."""

    modes: Mapping[str, int]
    transparent: int = 0
    moving: int = 0

    @property
    def grey(self) -> int:
        """Number of grey images."""
        return sum(count for mode, count in self.modes.items() if mode in GREY)

    @property
    def coloured(self) -> int:
        """Number of coloured images."""
        return sum(self.modes.values()) - self.grey

    def __add__(self, other: "Headers") -> "Headers":
        """Returns the counts of both splits together."""
        modes = dict(Counter(self.modes) + Counter(other.modes))
        return Headers(modes, self.transparent + other.transparent, self.moving + other.moving)

    def to_json(self) -> str:
        """Returns the counts as text for the cache."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Headers":
        """Read counts from the cache; ValueError, TypeError or AttributeError for damaged text."""
        values = json.loads(text)
        modes = {str(mode): int(count) for mode, count in values["modes"].items()}
        return cls(modes, int(values["transparent"]), int(values["moving"]))


def headers_of(encoded_images: Any, where: str) -> Headers:
    """Read the headers of images {"bytes", "path"}; decodes none."""
    modes: Counter[str] = Counter()
    transparent = moving = 0
    for index, encoded in enumerate(encoded_images):
        with open_image(encoded, index, where) as image:
            modes[image.mode] += 1
            transparent += image.mode in _ALPHA or "transparency" in image.info
            moving += image.format in _MOVING and getattr(image, "n_frames", 1) > 1
    return Headers(dict(modes), transparent, moving)


def open_image(encoded: Any, index: int, where: str) -> Any:
    """Open an image and read its header; DataError, with its path, for a file that is none."""
    import datasets
    from PIL import Image

    try:
        if encoded["bytes"] is not None:
            return Image.open(io.BytesIO(encoded["bytes"]))
        if "::" not in encoded["path"] and "://" not in encoded["path"]:
            return Image.open(encoded["path"])
        return datasets.Image().decode_example(encoded)  # the image lies in an archive, or elsewhere
    except Exception as error:
        raise undecodable(encoded, index, where, error) from error


def undecodable(encoded: Any, index: int, where: str, error: Exception) -> DataError:
    """Returns the error for a broken image, which names its path or else its row."""
    if encoded is None:
        return DataError(f"row {index} of a split of {where} has no image; leave the row out")
    path = encoded.get("path")
    line = " ".join(str(error).split())[:200]
    return DataError(
        f"image {index} of a split of {where} cannot be decoded ({type(error).__name__}: {line})"
        f"{f', in the file {path}' if path and str(path) not in line else ''}; repair it, or leave its row out"
    )


def channels_of(train: Headers, test: Headers, where: str) -> Channels:
    """Returns 1 (grey) only if all training and test images are grey, since grey loses the colours of others."""
    channels: Channels = 3 if train.coloured or test.coloured else 1
    if bool(train.coloured) != bool(test.coloured):
        sides = ("coloured", "grey") if train.coloured else ("grey", "coloured")
        log.warning(
            "%s: training images are %s and test images %s; all are read as RGB (data.channels=1 makes all grey)",
            where,
            *sides,
        )
    elif channels == 3 and (train.grey or test.grey):
        log.warning(
            "%s: %d of its images are grey and %d coloured; all are read as RGB (data.channels=1 makes all grey)",
            where,
            train.grey + test.grey,
            train.coloured + test.coloured,
        )
    return channels


def tell_losses(headers: Headers, where: str) -> None:
    """Log what of the images goes unused."""
    if headers.transparent:
        log.warning("%s: the transparency of %d images is dropped", where, headers.transparent)
    if headers.moving:
        log.warning("%s: %d images have several frames, of which only the first is read", where, headers.moving)
