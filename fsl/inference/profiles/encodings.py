"""Says in how many bytes something is sent, and what it takes to write and to read it."""

import io
import math
import time
from dataclasses import dataclass, fields
from statistics import median

import numpy as np
import torch

from fsl.argument_types import checks_types
from fsl.data import TaskData, TensorExamples, recompress
from fsl.data.rewritten_images import ImageFormat, pixels
from fsl.errors import ConfigError, DataError


@checks_types()
@dataclass(frozen=True)
class Encoding:
    """How what crosses is written: `factor` times its bytes and `fixed_bytes` more, for a sample.

    Seconds of a sample: `encode_seconds` on the device, `decode_seconds` on the edge. ConfigError for numbers below 0.
    """

    factor: float = 1.0
    fixed_bytes: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{field.name}={value}: it must be a finite number of at least 0")

    def bytes_of(self, raw: float, samples: int = 1) -> float:
        """Returns the bytes that are sent for so many raw ones, of so many samples in all."""
        return self.factor * raw + self.fixed_bytes * samples


PLAIN = Encoding()


@checks_types(error=DataError)
def image_encoding(task: TaskData, format: ImageFormat, quality: int, rows: int = 32) -> Encoding:
    """Measure images of a task as JPEG or WebP: mean bytes of the first rows, and seconds to write and to read one.

    An edge reads it into the model's float32 input. DataError where inputs are no 8-bit images, and for no rows.
    """
    if rows < 1:
        raise DataError(f"rows={rows}: measure at least one image")
    few = task.train.subset(torch.arange(min(rows, len(task.train))))
    small = TaskData(task.name, few, None, task.classes, scaling=task.scaling)
    size = recompress(small, format, quality).bytes
    assert isinstance(few, TensorExamples)
    assert task.scaling is not None
    from PIL import Image

    mean, std = (np.array(each, dtype=np.float32) for each in (task.scaling.mean, task.scaling.std))
    written, read = [], []
    for image in pixels(few, task.scaling):
        began = time.perf_counter()
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format, quality=quality)
        written.append((between := time.perf_counter()) - began)
        levels = np.asarray(Image.open(file).convert("L" if image.shape[-1] == 1 else "RGB")).reshape(image.shape)
        torch.from_numpy(((levels - mean) / std).transpose(2, 0, 1).copy())
        read.append(time.perf_counter() - between)
    return Encoding(factor=0.0, fixed_bytes=size, encode_seconds=median(written), decode_seconds=median(read))


@checks_types(error=DataError)
def raw_image_encoding(task: TaskData) -> Encoding:
    """Returns what an image takes as it is, a byte a channel of a pixel; DataError where inputs are no images."""
    if task.scaling is None or len(task.input_shape) != 3:
        raise DataError(f"{task.name} has inputs of shape {task.input_shape}, which are no images that a loader scaled")
    return Encoding(factor=0.0, fixed_bytes=float(math.prod(task.input_shape)))
