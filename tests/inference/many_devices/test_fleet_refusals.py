"""What no fleet can be, or do, is refused in one line that says what can."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fsl.errors import ConfigError, SplitError
from fsl.inference.many_devices import (
    DeviceSituation,
    FleetActions,
    FleetController,
    FleetEpisodes,
    FleetPolicy,
    FleetSetting,
    FleetSimulation,
    LocalFleet,
    PointTable,
    PpoOptions,
    RadioCell,
    evaluated,
    jetson_nano_resnet18,
)
from fsl.inference.planning import DevicePower, SplitChoice
from tests.helpers.fleets import fleet, told
from tests.helpers.small_profiles import small_costs

TABLE = jetson_nano_resnet18()
POWER = DevicePower(2.0, 1.0, 1.0, 1.0)


def step(points=(1, 1), channels=(0, 0), watts=(1.0, 1.0)):
    FleetSimulation(fleet(2), 1, 0).step(told(points, list(channels), list(watts)))


REFUSED = [
    (lambda: RadioCell(channels=0), "channels=0: give at least 1"),
    (lambda: RadioCell(noise_watts=0.0), "noise_watts=0.0: it must be above 0"),
    (lambda: RadioCell(most_watts=-1.0), "most_watts=-1.0: it must be above 0"),
    (lambda: RadioCell(least_watts=2.0), "least_watts=2.0: it is more than most_watts=1.0"),
    (lambda: RadioCell(down_mbit=0.0), "down_mbit=0.0: it must be above 0"),
    (lambda: RadioCell(exponent=math.nan), "exponent=nan: it must be a finite number"),
    (lambda: FleetSetting(table=TABLE, devices=0), "devices=0, most_slots=64: each must be at least 1"),
    (lambda: fleet(2, channels=3), "channels=3: 2 devices can use 2 at most; give fewer"),
    (lambda: fleet(2, beta=-1.0), "beta=-1.0: it must be a finite number of at least 0"),
    (lambda: fleet(2, nearest=0.0), "nearest=0.0, farthest=100.0: metres above 0, the nearest first"),
    (lambda: fleet(2, slot_seconds=0.0), "slot_seconds=0.0: it must be above 0"),
    (lambda: jetson_nano_resnet18(edge_times_as_fast=0.0), "edge_times_as_fast=0.0: it must be above 0"),
    (lambda: step(watts=(1.0, 0.0)), "watts=0.0: a device sends with more than 0 and at most 1 W"),
    (lambda: step(watts=(1.5, 1.0)), "watts=1.5: a device sends with more than 0 and at most 1 W"),
    (lambda: step(watts=(math.nan, 1.0)), "watts=nan"),
    (lambda: step(points=(6, 0)), "points: give whole numbers from 0 to 5"),
    (lambda: step(points=(1.0, 0.0)), "points: give whole numbers from 0 to 5"),
    (lambda: step(channels=(0, 1)), "channels: give whole numbers from 0 to 0"),
    (
        lambda: FleetSimulation(fleet(3), 1, 0).step(told([1, 1])),
        r"points has shape \(1, 2\); 3 devices in 1 copies need \(1, 3\)",
    ),
    (lambda: FleetSimulation(fleet(2), 0, 0), "copies=0: give at least 1"),
    (lambda: replace(TABLE, up_bits=(0.0, *TABLE.up_bits[1:])), "up_bits at input: 0; what the edge goes on from has"),
    (lambda: replace(TABLE, head_seconds=TABLE.head_seconds[1:]), "head_seconds: 5 values for 6 choices"),
    (lambda: replace(TABLE, tail_seconds=(-1.0, *TABLE.tail_seconds[1:])), "tail_seconds at input: -1.0; it must"),
    (lambda: replace(TABLE, choices=TABLE.choices[::-1]), "give at least two, each once, and 'output' last"),
    (lambda: PointTable.of(small_costs()), "nobody measured what the device draws; give SplitCosts a DevicePower"),
    (lambda: PpoOptions(slots=0), "ppo.slots=0: it must be at least 1"),
    (lambda: PpoOptions(gamma=1.5), "ppo.gamma=1.5: it must be from 0 to 1"),
    (lambda: FleetController(LocalFleet(), fleet(2), ["a"]), "names: a; give each of 2 devices its own"),
    (lambda: FleetController(LocalFleet(), fleet(2), ["a", "a"]), "names: a, a; give each of 2 devices its own"),
    (
        lambda: FleetController(FleetPolicy.untrained(fleet(3), 0), fleet(2), ["a", "b"]),
        "the policy was trained for devices=3, and here it is 2",
    ),
    (lambda: FleetController(LocalFleet(), fleet(1), ["a"]).policy("b"), "device 'b': this fleet has a"),
    (lambda: DeviceSituation(0.0), "metres=0.0: it must be above 0"),
    (
        lambda: evaluated(LocalFleet(), fleet(2), FleetEpisodes.at(fleet(3), 5.0)),
        "episodes: of 3 devices; the setting has 2",
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_one_line_says_what_is_wrong(number):
    call, line = REFUSED[number]
    with pytest.raises(ConfigError, match=line) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_point_that_the_profile_lacks_is_refused():
    with pytest.raises(SplitError, match="point='layer9': it must be one of input, cut1"):
        PointTable.of(small_costs(power=POWER), [SplitChoice("layer9")])


def test_a_table_of_profiles_has_their_seconds_bits_and_joules():
    table = PointTable.of(small_costs(power=POWER), [SplitChoice("cut3")])
    assert table.titles == ("cut3", "output")
    assert table.head_seconds == (0.1, 0.2)
    assert table.head_joules == (0.2, 0.4)
    assert table.up_bits == (8 * 16_000, 0)
    assert table.tail_seconds == (0.01, 0)
    assert table.down_bits == (8 * 40, 0)


def test_actions_are_arrays_of_one_shape():
    actions = FleetActions(np.zeros((1, 2), int), np.zeros((1, 2), int), np.ones((1, 1)))
    with pytest.raises(ConfigError, match=r"watts has shape \(1, 1\)"):
        FleetSimulation(fleet(2), 1, 0).step(actions)
