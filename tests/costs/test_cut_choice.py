"""Cuts chosen by the predicted time of a round."""

from itertools import product

import pytest
import torch
from fsl.strategies import SplitFedV1
from torch import nn

import fsl
from fsl.costs import DeviceProfile, FastestRound, LinkProfile
from fsl.costs.cut_choice import CutRound
from fsl.errors import ConfigError, SplitError
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


class WithoutGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.last(self.second(self.first(inputs).detach()))


INPUTS = torch.zeros(12, 4)
DATA = (INPUTS, torch.arange(12) % 3)


def simulated(cuts, model=None):
    options = {"device_profile": [SLOW, FAST], "devices": 2, "rounds": 1, "progress": False}
    return fsl.simulate(model or plain(), DATA, strategy=SplitFedV1(), cuts=cuts, **options)


def plain():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("cuts", "model", "line"),
    [
        ({"slow": "9", "fast": "1"}, None, "cuts.slow='9' cannot be made: the model has no module of that name"),
        ({"slow": "1", "fast": "2"}, None, "cuts.fast='2' cannot be made: there is nothing behind '2'"),
        ({0: "9", 1: "9"}, None, "cuts.0='9' cannot be made"),
        (
            {"slow": "unused", "fast": "second"},
            WithoutGradient(),
            "cuts.slow='unused' cannot be made: the model's forw",
        ),
        ({"slow": "first", "fast": "second"}, WithoutGradient(), "cuts.slow='first': no gradient comes back from behi"),
        (lambda profile: "9", None, "cuts: '9' cannot be made"),
        (FastestRound(["9", "1"]), None, "cuts: '9' cannot be made"),
        ({"slow": 3}, None, "cuts: 'slow': 3: give a device's id or profile, and a cut's name"),
    ],
)
def test_a_cut_that_cannot_be_made_is_told_as_it_was_written(cuts, model, line):
    with pytest.raises(ConfigError) as refused:
        simulated(cuts, model)
    assert str(refused.value).startswith(line)


def test_a_cut_that_cannot_be_priced_is_told_as_it_was_written():
    with pytest.raises(SplitError, match="cuts: '2' cannot be made: there is nothing behind '2'"):
        fsl.price(plain(), DATA, strategy="psl", cuts=["2"], devices=2)


def test_a_cut_for_all_devices_is_told_as_cut():
    with pytest.raises(SplitError, match=r"^cut='9' cannot be made"):
        fsl.simulate(plain(), DATA, strategy="psl", cut="9", devices=2, progress=False)
