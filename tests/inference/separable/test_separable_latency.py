"""A block takes as long as its slowest device with its links, and blocks add up."""

import pytest

from fsl.costs import DeviceProfile, LinkProfile
from fsl.errors import ConfigError
from fsl.inference.separable import Gates, separable, separable_latency
from tests.helpers.separated import small_convs

SLOW, FAST = DeviceProfile("slow", 1e6), DeviceProfile("fast", 4e6)
LINK = LinkProfile("link", up_mbit=0.8, down_mbit=1.6, latency_s=0.01)  # 100,000 bytes a second up, 200,000 down


def network(links=((0, 0, 1),)):
    """Two devices, 8 channels of 4x4: a link carries 4 channels, 256 bytes."""
    model = separable(small_convs(), devices=2, input_shape=(3, 4, 4))
    opened = model.no_links().tensor()
    for place in links:
        opened[place] = True
    model.gates = Gates(opened.tolist())
    return model


def test_a_stage_is_the_slowest_device_with_its_links_by_hand():
    """At the first block device 1 has device 0's maps: 16 positions x 9 x 8 inputs x 4 outputs of multiply-adds."""
    found = separable_latency(network(), devices=[SLOW, FAST], link=LINK)
    names = [stage.name for stage in found.stages]
    assert names == ["images", "2", "4", "outputs"]
    images, first, second, outputs = found.stages
    assert images.links == pytest.approx((0.0, 0.01 + 192 / 1e5))
    assert images.compute == pytest.approx((2 * 16 * 27 * 4 / 1e6, 2 * 16 * 27 * 4 / 4e6))
    assert first.links == pytest.approx((0.0, 0.01 + 256 / 1e5))
    assert first.compute == pytest.approx((2 * 16 * 36 * 4 / 1e6, 2 * 16 * 72 * 4 / 4e6))
    assert first.seconds == pytest.approx(max(2 * 16 * 36 * 4 / 1e6, 0.01256 + 2 * 16 * 72 * 4 / 4e6))
    assert second.links == (0.0, 0.0)
    assert outputs.links == pytest.approx((0.01 + 16 / 1e5, 0.0))
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))


def test_devices_of_one_block_do_not_add_up():
    one = separable_latency(network([(0, 0, 1)]), devices=FAST, link=LINK)
    both = separable_latency(network([(0, 0, 1), (0, 1, 0)]), devices=FAST, link=LINK)
    assert both.stages[1].seconds == one.stages[1].seconds


def test_what_comes_from_several_shares_a_devices_link():
    model = separable(small_convs(), devices=4, input_shape=(3, 4, 4))
    opened = model.no_links().tensor()
    opened[0, 1:, 0] = True  # three devices send 2 channels, 128 bytes each, to device 0
    model.gates = Gates(opened.tolist())
    found = separable_latency(model, devices=FAST, link=LINK, rows=5)
    assert found.stages[1].links == pytest.approx((0.01 + 5 * 3 * 128 / 2e5, 0.0, 0.0, 0.0))


def test_profiles_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="devices: 3 profiles for 2 devices"):
        separable_latency(network(), devices=[SLOW] * 3, link=LINK)
    with pytest.raises(ConfigError, match="there is no link profile 'carrier_pigeon'"):
        separable_latency(network(), devices="pi4", link="carrier_pigeon")
