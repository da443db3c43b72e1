"""Images written anew as JPEG or WebP, as an edge would get them in place of smashed data."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fsl.data import TensorExamples, images, recompress, recompressed
from fsl.data.rewritten_images import pixels
from fsl.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    """PNG files of two classes, smooth enough that JPEG keeps most of them."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                small.resize((16, 16)).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_pixels_are_those_of_the_files(folder):
    task = images(str(folder))
    found = pixels(task.train, task.scaling)
    stored = [np.asarray(Image.open(path)) for path in sorted(folder.glob("train/*/*.png"))]
    assert sorted(map(np.ndarray.tobytes, found)) == sorted(map(np.ndarray.tobytes, stored))


def test_an_image_is_what_pillow_reads_of_what_it_wrote(folder):
    task = images(str(folder))
    sent = recompress(task, "jpeg", 30)
    file, before = io.BytesIO(), pixels(task.train, task.scaling)[0]
    Image.fromarray(before).save(file, "jpeg", quality=30)
    after = pixels(sent.task.train, sent.task.scaling)[0]
    assert (after == np.asarray(Image.open(file))).all()
    assert (after != before).any()
    assert torch.equal(sent.task.train.targets, task.train.targets)
    assert len(sent.task.test) == len(task.test)


def test_bytes_are_those_of_the_files(folder):
    task = images(str(folder))
    sizes = [path.stat().st_size for path in folder.glob("train/*/*.png")]
    assert task.stored_bytes == pytest.approx(sum(sizes) / len(sizes))
    few = replace(task, train=task.train.subset(torch.arange(1)))
    file = io.BytesIO()
    Image.fromarray(pixels(few.train, task.scaling)[0]).save(file, "jpeg", quality=50)
    written = file.getvalue()
    sent = recompress(few, "jpeg", 50)
    assert sent.bytes == len(written)
    assert sent.bytes_without_tables == len(written) - written.index(b"\xff\xda")
    assert recompress(few, "webp", 50).bytes_without_tables is None


def test_lower_qualities_take_fewer_bytes(folder):
    task = images(str(folder))
    for format in ("jpeg", "webp"):
        fine, coarse = (recompress(task, format, quality).bytes for quality in (90, 10))
        assert coarse < fine


def test_a_loader_is_named_with_its_own_options(folder):
    made = recompressed("fsl.data.images", "jpeg", 30, path=str(folder), limit=3)
    assert torch.equal(made.train.inputs, recompress(images(str(folder), limit=3), "jpeg", 30).task.train.inputs)
    with pytest.raises(ConfigError, match=r"there is no option of fsl\.data\.images 'pth'"):
        recompressed("fsl.data.images", "jpeg", 30, pth=str(folder))


def test_what_is_no_image_is_refused(folder):
    task = images(str(folder))
    with pytest.raises(DataError, match="only images of 1 or 3 channels"):
        recompress(replace(task, train=TensorExamples(torch.zeros(4, 5), torch.zeros(4).long())), "jpeg", 50)
    with pytest.raises(DataError, match="not whole numbers from 0 to 255"):
        recompress(replace(task, train=TensorExamples(task.train.inputs + 0.01, task.train.targets)), "jpeg", 50)
    with pytest.raises(DataError, match="quality=0: it must be from 1 to 100"):
        recompress(task, "jpeg", 0)
    with pytest.raises(DataError, match="format"):
        recompress(task, "png", 50)
