"""Cuts chosen by the predicted time of a round."""

from itertools import product

import pytest
from fsl.strategies import SplitFedV1

from fsl.costs import DeviceProfile, FastestRound, LinkProfile
from fsl.costs.cut_choice import CutRound
from tests.helpers.runs import run

SLOW = DeviceProfile(name="slow", flops_per_second=1e6)
FAST = DeviceProfile(name="fast", flops_per_second=1e8)
EDGE = DeviceProfile(name="edge", flops_per_second=4e6)
LINK = LinkProfile(name="link", up_mbit=1000.0, down_mbit=1000.0)
HARDWARE = {"device_profile": [SLOW, FAST], "edge_profile": EDGE, "link_profile": LINK}


def seconds(**options):
    found = run(SplitFedV1(), devices=4, rounds=1, evaluate_every=0, **HARDWARE, **options).metrics[0]
    return found["sim_seconds"], found.get("cuts")


class Watched(FastestRound):
    """Keeps what it was asked, and what it chose."""

    def choose(self, round: CutRound):
        self._asked = round
        self._chosen = super().choose(round)
        return self._chosen


def test_what_is_predicted_is_what_is_simulated_and_no_choice_is_better():
    choice = Watched(cuts=["conv", "pool", "conv2"])
    found, cuts = seconds(cut=None, cuts=choice)
    round = choice._asked
    assert round.cost(choice._chosen).seconds == pytest.approx(found, rel=1e-12)
    every = [
        round.cost(dict(zip(round.devices, each, strict=True))).seconds
        for each in product(round.cuts, repeat=len(round.devices))
    ]
    assert found == pytest.approx(min(every), rel=1e-12)
    assert cuts == {"pool": 2, "conv2": 2}  # the slow ones run less


def test_mixed_devices_are_faster_with_a_cut_each_than_with_one_for_all():
    one = {cut: seconds(cut=cut)[0] for cut in ("conv", "pool", "conv2")}
    by_hand, _ = seconds(cut=None, cuts={"slow": "pool", "fast": "conv2"})
    chosen, _ = seconds(cut=None, cuts="fastest")
    assert chosen <= by_hand < min(one.values())


def test_a_link_that_fades_changes_the_choice_between_rounds():
    fading = LinkProfile(name="fading", up_mbit=1000.0, down_mbit=1000.0, trace=[[0.01, 0.0001]])
    strong = DeviceProfile(name="strong", flops_per_second=1e12)
    options = {"link_profile": fading, "device_profile": FAST, "edge_profile": strong}
    found = run(SplitFedV1(), cut=None, cuts=FastestRound(["conv", "conv2", "head.0"]), devices=2, rounds=5, **options)
    first, *_, last = (row["cuts"] for row in found.metrics)
    assert (first, last) == ({"conv": 2}, {"head.0": 2})
