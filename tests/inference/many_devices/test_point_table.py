"""A table has what bottlenecks send: in the published one, and in one of measured profiles."""

import pytest
import torch

from fsl.codecs import Bottleneck, Int8
from fsl.inference.comparison.cut_way import CutWay
from fsl.inference.many_devices import PointTable, jetson_nano_resnet18
from fsl.inference.planning import DevicePower, SplitChoice
from fsl.inference.profiles import Encoding
from tests.helpers.small_profiles import small_costs

SHAPES = [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]  # behind ResNet18's layers
CODES = [4, 8, 16, 64]  # channels that the published rates leave, in 8 bits each


def encoding(shape: tuple[int, ...], codes: int) -> Encoding:
    """What a bottleneck of fsl's sends by int8."""
    encoder, decoder = Bottleneck(channels=codes, stride=1).modules(torch.Size([1, *shape]))
    values = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    return CutWay(Int8, encoder, decoder).crossed([values])[1]


@pytest.mark.parametrize("layer", range(4))
def test_fsls_bottlenecks_send_the_published_bits(layer):
    bits = 8 * encoding(SHAPES[layer], CODES[layer]).fixed_bytes
    published = jetson_nano_resnet18().up_bits[layer + 1]
    assert published <= bits <= published + 8 * 8  # int8 sends a scale


def test_a_measured_bottleneck_counts_with_its_bits_and_its_seconds_on_both_sides():
    choice = SplitChoice("cut2", "bottleneck")
    written = Encoding(factor=0.0, fixed_bytes=500.0, encode_seconds=0.002, decode_seconds=0.001)
    costs = small_costs(power=DevicePower(2.0, 1.0, 1.0, 1.0), measured={choice: written})
    table = PointTable.of(costs)
    at = table.choices.index(choice)
    assert table.up_bits[at] == 8 * 500
    assert table.head_seconds[at] == pytest.approx(0.05 + 0.002)
    assert table.head_joules[at] == pytest.approx(2 * 0.052)
    assert table.tail_seconds[at] == pytest.approx(0.015 + 0.001)
