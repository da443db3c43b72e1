"""Natural bottlenecks are counted as published, from block tables and from a model itself."""

import pytest
import torch

from fsl.inference import SplitPoints
from fsl.inference.profiles import natural_bottlenecks
from fsl.models import VGG16
from tests.helpers.efficientnets import blocks

COUNTS = {  # by elements, and by bytes of float32 against an image of a byte a value
    "B0": (15, 13), "B1": (21, 18), "B2": (21, 15), "B3": (24, 18), "B4": (30, 22), "B5": (36, 26), "B6": (42, 22),
    "B7": (44, 27), "S": (34, 30), "M": (49, 44), "L": (68, 32), "Lite0": (15, 13),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_blocks_of_efficientnets_are_counted_as_published(name):
    whole, elements = blocks(name)
    in_bytes = {block: 4 * count for block, count in elements.items()}
    found = natural_bottlenecks(elements, whole), natural_bottlenecks(in_bytes, whole)
    assert tuple(map(len, found)) == COUNTS[name]


def test_of_vgg16_only_the_last_five_layers_in_front_of_the_classifier_are():
    with torch.device("meta"):
        model, value = VGG16((3, 224, 224), 1000), torch.empty(1, 3, 224, 224)
        elements = {}
        for name, stage in model.named_children():
            value = stage(value)
            elements[name] = value.numel()
    del elements["head"]
    assert natural_bottlenecks(elements, 3 * 224 * 224) == ("pool4", "conv11", "conv12", "conv13", "pool5")


def test_as_much_as_the_input_is_no_bottleneck():
    assert natural_bottlenecks({"a": 10, "b": 9, "c": 11, "d": 0}, 10) == ("b", "d")


@pytest.mark.shows
def test_efficientnet_lite0_itself_has_what_its_table_says():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model = package.EfficientNet.from_name("efficientnet-lite0", num_classes=1000)
    names = [f"_blocks.{number}" for number in range(16)]
    points = SplitPoints(model, torch.zeros(3, 3, 224, 224), names)
    crossings = [points.crossing(name).elements for name in names]
    assert crossings == list(blocks("Lite0")[1].values())
    assert [points.crossing(name).bytes for name in names] == [4 * count for count in crossings]
