"""Images written anew as JPEG or WebP: what an edge would see of inputs that are sent in place of smashed data."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fsl.argument_types import checks_types
from fsl.data.examples import Examples, TensorExamples
from fsl.data.pixels import normalised
from fsl.data.task import Scaling, TaskData
from fsl.errors import DataError
from fsl.importing.building import build_kind

ImageFormat = Literal["jpeg", "webp"]
_SCAN = b"\xff\xda"  # ends a JPEG's tables and begins its picture
_OFF = 0.02  # levels by which a normalised pixel may miss a whole number


@dataclass(frozen=True)
class Recompressed:
    """A task whose images were written anew, and the mean bytes of a training image.

    `bytes`: of whole files. `bytes_without_tables`: of JPEG, with the tables told once (ISO 10918-1, B.5, abbreviated
    format); None for other formats.
    """

    task: TaskData
    bytes: float
    bytes_without_tables: float | None


@checks_types("data.", DataError)
def recompressed(source: str, format: ImageFormat = "jpeg", quality: int = 75, **options: Any) -> TaskData:
    """Load images by another loader, and write each as JPEG or WebP of a quality from 1 to 100; the task is of these.

    `source` is the loader, as "fsl.data.cifar10", and `options` its own: `data._target_=fsl.data.recompressed
    +data.source=fsl.data.cifar10 +data.format=webp +data.quality=50`. Normalisation is that of the images before.
    """
    inner: Mapping[str, Any] = {"_target_": source, **options}
    return recompress(build_kind(source, inner, TaskData), format, quality).task


@checks_types(error=DataError)
def recompress(task: TaskData, format: ImageFormat, quality: int) -> Recompressed:
    """Write every image of a task as JPEG or WebP, and read it again; DataError where inputs are no 8-bit images."""
    if format not in ("jpeg", "webp"):
        raise DataError(f"format={format!r}: images are written as jpeg or webp")
    if not 1 <= quality <= 100:
        raise DataError(f"quality={quality}: it must be from 1 to 100")
    from PIL import features  # only who writes images needs it

    if format == "webp" and not features.check("webp"):
        raise DataError("format='webp': this Pillow was built without WebP; use jpeg")
    scaling = task.scaling
    if scaling is None or len(task.input_shape) != 3 or task.input_shape[0] not in (1, 3):
        raise DataError(
            f"{task.name} has inputs of shape {task.input_shape}, and only images of 1 or 3 channels that a loader "
            "normalised, as those of fsl.data.images, can be written as files"
        )
    of_train, whole, bare = _again(task.train, scaling, format, quality)
    test, validation = (
        None if part is None else _again(part, scaling, format, quality)[0] for part in (task.test, task.validation)
    )
    name = f"{task.name} as {format} {quality}"
    made = replace(task, name=name, train=of_train, test=test, validation=validation, stored_bytes=whole)
    return Recompressed(made, whole, bare if format == "jpeg" else None)


def _again(examples: Examples, scaling: Scaling, format: str, quality: int) -> tuple[TensorExamples, float, float]:
    """Returns examples with images written anew, the files' mean bytes, and those behind a JPEG's tables."""
    if not isinstance(examples, TensorExamples):
        raise DataError(f"a {type(examples).__name__} hands out its images one by one; load them by fsl.data.images")
    from PIL import Image

    images, sizes, bare = pixels(examples, scaling), 0, 0
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format, quality=quality)
        written = file.getvalue()
        sizes += len(written)
        bare += len(written) - max(0, written.find(_SCAN)) if format == "jpeg" else 0
        image[:] = np.asarray(Image.open(file).convert("L" if image.shape[-1] == 1 else "RGB")).reshape(image.shape)
    (inputs,) = normalised(images, scaling=scaling)
    count = max(1, len(images))
    return TensorExamples(inputs, examples.targets), sizes / count, bare / count


def pixels(examples: TensorExamples, scaling: Scaling) -> np.ndarray:
    """Returns images (N, H, W, C) uint8 of normalised inputs (N, C, H, W); DataError where these are no such images."""
    shape = (1, -1, 1, 1)
    mean, std = (np.array(values, dtype=np.float32).reshape(shape) for values in (scaling.mean, scaling.std))
    levels = examples.inputs.numpy() * std + mean
    whole = np.rint(levels)
    if levels.size and (np.abs(levels - whole).max() > _OFF or whole.min() < 0 or whole.max() > 255):
        raise DataError("inputs are no 8-bit images: their levels are not whole numbers from 0 to 255")
    return np.ascontiguousarray(whole.astype(np.uint8).transpose(0, 2, 3, 1))
