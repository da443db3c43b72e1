"""What the published table and radio come to, worked out by hand."""

import math

import numpy as np
import pytest

from fsl.inference.many_devices import FleetEpisodes, RadioCell, enumerated_optimum
from tests.helpers.fleets import fleet, run, told


def test_a_device_at_50_m_with_1_w_sends_12_97_mbit_a_second():
    radio = RadioCell()
    rate = radio.rates(radio.gains(np.array([50.0])), np.zeros(1))[0]
    assert rate == pytest.approx(1e6 * math.log2(8001))
    assert rate == pytest.approx(12.97e6, rel=1e-3)


def test_the_first_layer_on_the_device_beats_all_of_it():
    records, _, _ = run(fleet(1), told([1]))
    assert records.seconds.mean() == pytest.approx(4.359e-3 + 100_352 / (1e6 * math.log2(8001)))
    assert (records.seconds.mean(), records.joules.mean()) == pytest.approx((12.1e-3, 17.7e-3), rel=2e-3)
    records, _, _ = run(fleet(1), told([5]))
    assert (records.seconds.mean(), records.joules.mean()) == pytest.approx((45.887e-3, 98.446e-3))


@pytest.mark.slow
def test_the_best_power_of_one_device_is_0_162_w():
    setting = fleet(1)
    best = enumerated_optimum(setting, FleetEpisodes.at(setting, 50.0), powers=17).told
    assert best.points[0, 0] == 1
    assert best.watts[0, 0] == pytest.approx(0.162, rel=0.05)
    watts = np.linspace(0.01, 1, 100_000)  # seconds + joules of sending alone
    costs = (1 + watts) / np.log2(1 + 8000 * watts)
    assert watts[costs.argmin()] == pytest.approx(0.162, abs=5e-4)


def test_two_devices_in_one_channel_get_one_mbit_a_second_each_and_offloading_loses():
    records, _, _ = run(fleet(2), told([0, 0]))
    assert (8 * 3 * 224 * 224 / records.upload).mean() == pytest.approx(1.0e6, rel=1e-3)
    records, _, _ = run(fleet(2), told([1, 1]))
    local, _, _ = run(fleet(2), told([5, 5]))
    assert records.seconds.mean() > 2 * local.seconds.mean()
    assert records.joules.mean() > local.joules.mean()


def test_two_devices_in_two_channels_do_not_disturb_each_other():
    both, _, _ = run(fleet(2, channels=2), told([1, 1], [0, 1]))
    alone, _, _ = run(fleet(1), told([1]))
    assert both.seconds == pytest.approx(alone.seconds[0])
