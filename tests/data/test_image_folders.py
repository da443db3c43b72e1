"""Folders of images: their colours, their classes, and what in them is not read, each said or refused."""

import os

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fsl.data import images
from fsl.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FSL_CACHE", str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "arrow")
    return folder


def picture(seed=0, mode="RGB", size=(6, 4)):
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def fill(folder, classes=("ant", "bee"), count=6, ending="png", **more):
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(i, **more).save(folder / name / f"{i}.{ending}")
    return folder


def write_parquet(folder, split, pictures):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    rows = {"image": pictures, "label": [i % 2 for i in range(len(pictures))]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")


def refusal(folder, **options):
    with pytest.raises(DataError) as refused:
        images(str(folder), **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Colours


@pytest.mark.parametrize("grey", ["L", "1", "LA"])
@pytest.mark.parametrize("first", [True, False], ids=["the first is grey", "a later one is grey"])
def test_one_grey_image_leaves_the_others_their_colours(tmp_path, grey, first, caplog):
    fill(tmp_path)
    picture(0, grey).save(tmp_path / "ant" / ("0.png" if first else "5.png"))
    data = images(str(tmp_path))
    assert data.input_shape == (3, 4, 6)
    inputs = torch.cat([data.train.inputs, data.test.inputs])
    assert (inputs[:, 0] != inputs[:, 1]).any()
    assert (
        "1 of its images are grey and 11 coloured; all are read as RGB (data.channels=1 makes all grey)" in caplog.text
    )


MODES = [("L", "png", 1), ("1", "png", 1), ("LA", "png", 1), ("P", "png", 3), ("RGBA", "png", 3), ("CMYK", "jpg", 3)]


@pytest.mark.parametrize(("mode", "ending", "channels"), [*MODES, ("P", "gif", 3)])
def test_images_of_one_mode_are_grey_only_where_it_is(tmp_path, mode, ending, channels):
    assert images(str(fill(tmp_path, mode=mode, ending=ending))).input_shape[0] == channels


@pytest.mark.parametrize(("train", "test"), [("L", "RGB"), ("RGB", "L")])
def test_tests_of_another_colour_are_read_as_rgb_and_said(tmp_path, train, test, caplog):
    fill(tmp_path / "train", mode=train)
    fill(tmp_path / "test", mode=test)
    assert images(str(tmp_path)).input_shape == (3, 4, 6)
    words = {"L": "grey", "RGB": "coloured"}
    assert f"training images are {words[train]} and test images {words[test]}; all are read as RGB" in caplog.text


def test_colours_of_parquet_files_are_those_of_all_rows(tmp_path):
    write_parquet(tmp_path, "train", [picture(0, "L"), picture(1), picture(2), picture(3)])
    write_parquet(tmp_path, "test", [picture(4, "L"), picture(5, "L")])
    assert images(str(tmp_path)).input_shape == (3, 4, 6)


def test_colours_asked_for_are_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.setattr("fsl.data.pixels.headers_of", lambda *rows: pytest.fail("looked up"))
    assert images(str(fill(tmp_path)), channels=1).input_shape == (1, 4, 6)


def test_headers_are_read_once_and_again_where_files_change(tmp_path, own_cache, monkeypatch):
    images(str(fill(tmp_path, mode="L")))
    with monkeypatch.context() as once:
        once.setattr("fsl.data.pixels.headers_of", lambda *rows: pytest.fail("read again"))
        assert images(str(tmp_path)).input_shape[0] == 1
    for file in own_cache.glob("*.json"):
        file.write_text("{damaged")
    assert images(str(tmp_path)).input_shape[0] == 1
    picture(9).save(tmp_path / "ant" / "5.png")
    os.utime(tmp_path / "ant" / "5.png", (1, 1))
    assert images(str(tmp_path)).input_shape[0] == 3


def test_transparency_and_further_frames_are_dropped_with_a_word(tmp_path, caplog):
    fill(tmp_path, mode="RGBA")
    frames = [picture(i, "P") for i in range(3)]
    frames[0].save(tmp_path / "ant" / "9.gif", save_all=True, append_images=frames[1:])
    images(str(tmp_path))
    assert "the transparency of 12 images is dropped" in caplog.text
    assert "1 images have several frames, of which only the first is read" in caplog.text


def test_an_image_is_turned_as_its_camera_says(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    fill(tmp_path, ending="jpg")
    for file in tmp_path.rglob("*.jpg"):
        picture(0).save(file, exif=turned)
    assert images(str(tmp_path)).input_shape == (3, 6, 4)


@pytest.mark.parametrize("content", [b"no image", b""])
def test_a_broken_image_is_named_by_its_path(tmp_path, content):
    (fill(tmp_path) / "bee" / "3.png").write_bytes(content)
    message = refusal(tmp_path)
    assert "cannot be decoded (UnidentifiedImageError" in message
    assert "bee/3.png" in message


def test_an_image_that_breaks_off_is_named_by_its_path(tmp_path):
    file = fill(tmp_path, size=(60, 40)) / "bee" / "3.png"
    file.write_bytes(file.read_bytes()[:-3000])
    assert "bee/3.png" in refusal(tmp_path)


# Classes


def one_class(folder):
    fill(folder, ["ant"])


def no_class(folder):
    for i in range(4):
        picture(i).save(folder / f"{i}.png")


def no_class_in_splits(folder):
    for split in ("train", "test"):
        (folder / split).mkdir()
        picture(0).save(folder / split / "0.png")


def a_stray_image(folder):
    picture().save(fill(folder) / "stray.png")


def nested(folder):
    fill(fill(folder) / "ant", ["small"], 2)


def two_of_one_name(folder):
    fill(folder / "ant", ["day", "night"])
    fill(folder / "bee", ["day", "night"])


def unknown_in_tests(folder):
    fill(folder / "train")
    fill(folder / "test", ["ant", "cow"])


def both_kinds(folder):
    write_parquet(fill(folder), "train", [picture()])


def a_link(folder):
    inside = fill(folder / "data")
    (inside / "cow").symlink_to(fill(folder / "elsewhere", ["cow"]) / "cow", target_is_directory=True)


def capitals(folder):
    fill(folder / "Train")
    fill(folder / "Test")


def sizes(folder):
    picture(0, size=(9, 9)).save(fill(folder) / "ant" / "2.png")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (one_class, "has images of one class only ('ant'); classification needs at least 2"),
        (no_class, "has images without a folder for each class (0.png, ...); put each image into a folder"),
        (no_class_in_splits, "directly in 'test', which is read as a split, without a folder for each class"),
        (a_stray_image, "'stray.png' lies less deep than most images, so that folders are no classes; move it"),
        (nested, "'ant/small/0.png' lies deeper than most images"),
        (two_of_one_name, "folders 'ant/day' and 'bee/day' have the same name, and would be one class"),
        (unknown_in_tests, "the test images have classes that training has not (cow); add images of them"),
        (both_kinds, "holds both Parquet files (train.parquet, ...) and images (ant/0.png, ...); give a folder with"),
        (capitals, "the folder 'Test' would not count as a split, and its images would be mixed with the others'"),
        (sizes, "has images of several sizes (6x4, 9x9); set data.size to the pixels a side to resize them to"),
    ],
)
def test_a_folder_that_has_no_one_reading_is_refused(tmp_path, make, line):
    make(tmp_path)
    assert line in refusal(tmp_path)


def test_a_linked_folder_is_not_left_out_without_a_word(tmp_path):
    a_link(tmp_path)
    assert "'cow' is a symbolic link to a folder, which is not followed; give the folder itself" in refusal(
        tmp_path / "data"
    )


def test_what_is_not_read_is_said(tmp_path, caplog):
    fill(tmp_path / "train")
    fill(tmp_path / "test", ["ant"])
    (tmp_path / "train" / "cow").mkdir()
    (tmp_path / "train" / "ant" / ".DS_Store").write_text("hidden files are nobody's data")
    (tmp_path / "train" / "ant" / "6.heic").write_text("")
    fill(tmp_path / "more", ["ant"], 1)
    data = images(str(tmp_path))
    assert (data.classes, len(data.train), len(data.test)) == (2, 12, 6)
    assert "no images in train/cow, which is no class then" in caplog.text
    assert "files that are no images by their names are not read (1: train/ant/6.heic)" in caplog.text
    assert "no test images of the classes bee" in caplog.text
    assert "only 18 of 19 images belong to a split, others are not read" in caplog.text
    assert "DS_Store" not in caplog.text


@pytest.mark.parametrize(
    "folders", [("train", "test"), ("training", "testing"), ("data/train", "data/test"), ("train-1", "test-1")]
)
def test_splits_are_told_by_the_names_of_folders(tmp_path, folders, caplog):
    for count, folder in zip((6, 3), folders):
        fill(tmp_path / folder, count=count)
    data = images(str(tmp_path))
    assert (len(data.train), len(data.test)) == (12, 6)
    assert not caplog.records


def test_names_of_any_kind_are_classes(tmp_path):
    fill(tmp_path, ["été", "猫", "a b"])
    for file in (tmp_path / "猫").iterdir():
        file.rename(file.with_suffix(".PNG"))
    assert images(str(tmp_path)).classes == 3


def test_metadata_says_the_labels_of_images_without_folders(tmp_path):
    no_class(tmp_path)
    lines = [f"{i}.png,{'even' if i % 2 == 0 else 'odd'}" for i in range(4)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    data = images(str(tmp_path), test_share=0.5)
    assert (data.classes, len(data.train), len(data.test)) == (2, 2, 2)


def test_tests_of_a_declared_class_that_is_not_trained_are_told(tmp_path, caplog):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c"]))
    for split, labels in (("train", [0, 1, 0]), ("test", [2, 1, 2])):
        rows = {"image": [picture(i) for i in range(3)], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    assert images(str(tmp_path)).classes == 3
    assert "2 test rows are of classes that no training row has: c" in caplog.text


def test_a_row_without_an_image_is_refused(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path, split, [picture(0), picture(1), None])
    assert "row 2 of a split of" in refusal(tmp_path)
    assert "has no image; leave the row out" in refusal(tmp_path, channels=3)
