"""What is sent has a size and takes time to write and read; images are measured as files."""

import pytest
import torch

from fsl.data import TaskData, TensorExamples, digits, recompress
from fsl.data.task import Scaling
from fsl.errors import ConfigError, DataError
from fsl.inference.profiles import PLAIN, Encoding, image_encoding, raw_image_encoding


def task(rows=4, channels=3):
    images = torch.randint(0, 256, (rows, channels, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    mean, std = (100.0,) * channels, (50.0,) * channels
    return TaskData(
        "made", TensorExamples((images - 100) / 50, torch.zeros(rows).long()), None, 1, scaling=Scaling(mean, std)
    )


def test_bytes_are_a_factor_of_the_raw_ones_and_a_rest():
    assert PLAIN.bytes_of(100) == 100
    assert Encoding(factor=0.25, fixed_bytes=12).bytes_of(100) == 37


@pytest.mark.parametrize("name", ["factor", "fixed_bytes", "encode_seconds", "decode_seconds"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_numbers_that_cannot_be_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name}="):
        Encoding(**{name: value})


@pytest.mark.parametrize(("format", "channels"), [("jpeg", 3), ("webp", 3), ("jpeg", 1)])
def test_an_image_takes_the_mean_bytes_of_its_files(format, channels):
    made = task(channels=channels)
    found = image_encoding(made, format, 60)
    assert found.fixed_bytes == recompress(made, format, 60).bytes
    assert found.factor == 0
    assert found.encode_seconds > 0
    assert found.decode_seconds > 0


def test_only_the_first_rows_are_written():
    assert image_encoding(task(), "jpeg", 60, rows=2).fixed_bytes != image_encoding(task(), "jpeg", 60).fixed_bytes


def test_an_image_as_it_is_takes_a_byte_a_value():
    assert raw_image_encoding(task()).bytes_of(12345) == 3 * 16 * 16
    assert raw_image_encoding(digits()).bytes_of(0) == 64


def test_what_is_no_image_is_refused():
    table = TaskData("rows", TensorExamples(torch.zeros(4, 3), torch.zeros(4).long()), None, 1)
    with pytest.raises(DataError, match="no images that a loader scaled"):
        raw_image_encoding(table)
    with pytest.raises(DataError, match="only images of 1 or 3 channels"):
        image_encoding(table, "jpeg", 75)
    for rows in (0, -1):
        with pytest.raises(DataError, match=f"rows={rows}: measure at least one"):
            image_encoding(task(), "jpeg", 75, rows=rows)
    with pytest.raises(DataError, match="quality=0"):
        image_encoding(task(), "jpeg", 0)
