"""Lean fronts in training: SplitFed V1 is FedAvg on the whole lean model, and one device trains it as if unsplit."""

import pytest
import torch
from fsl.strategies import FedAvg, SplitFedV1
from torch import nn

from fsl.data import Dirichlet
from fsl.models.lean import Rounding, ghosted, magnitude_pruned, pruned, quantized
from tests.helpers.runs import MOMENTUM, assert_same_bits, run
from tests.helpers.small import small_model

CUT = "pool"
FRONTS = {
    "ghost": lambda model: ghosted(model, until=CUT),
    "int8": lambda model: quantized(model, until=CUT),
    "pruned": lambda model: pruned(model, 0.5, CUT),
    "magnitude": lambda model: magnitude_pruned(model, 0.5, CUT),
    "ghost in int8, pruned": lambda model: quantized(pruned(ghosted(model, until=CUT), 0.5, CUT), CUT),
}
fronts = pytest.mark.parametrize("lean", FRONTS.values(), ids=FRONTS)


@fronts
def test_splitfed_v1_with_a_lean_front_is_fedavg_on_the_whole_lean_model(lean):
    model = lean(small_model("batch"))
    options = {"optimizer": MOMENTUM, "partition": Dirichlet(alpha=1.0, min_samples=5), "batch_size": 8}
    split, whole = run(SplitFedV1(), model, **options), run(FedAvg(), model, **options)
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())
    assert not torch.equal(split.model.state_dict()["head.1.weight"], model.state_dict()["head.1.weight"])


@fronts
def test_one_device_trains_a_lean_front_as_if_unsplit(lean):
    model = lean(small_model("batch"))
    split, whole = (run(strategy, model, devices=1) for strategy in (SplitFedV1(), FedAvg()))
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())


def test_ranges_are_averaged_like_statistics_and_their_counters_take_the_largest():
    """The first batches of two devices make their ranges, and the cloud's are the mean of these by their rows."""
    model = quantized(small_model(), until=CUT)
    options = {"rounds": 1, "batch_size": 96}
    together = run(SplitFedV1(), model, devices=2, **options)
    rounding = [m for m in together.model.modules() if isinstance(m, Rounding)]
    assert len(rounding) == 2
    assert all(each.batches == 1 for each in rounding)
    alone = run(SplitFedV1(), model, devices=1, **options)
    widest = [m for m in alone.model.modules() if isinstance(m, Rounding)]
    for mean, one in zip(rounding, widest, strict=True):
        assert 0.5 * one.high < mean.high < one.high  # one device holds the largest value, and the other does not
        assert one.low <= mean.low <= 0


def test_masked_weights_stay_zero_on_all_devices_and_behind_the_average():
    model = magnitude_pruned(small_model(), 0.5, CUT)
    trained = run(SplitFedV1(), model, optimizer=MOMENTUM).model.state_dict()
    assert torch.equal(trained["conv.0.mask"], model.state_dict()["conv.0.mask"])
    assert not trained["conv.0.weight"][trained["conv.0.mask"] == 0].any()
    assert trained["conv.0.weight"].count_nonzero() == 18


def test_a_trained_model_is_pruned_and_trained_on():
    first = run(SplitFedV1(), small_model("batch"), rounds=3)
    small = pruned(first.model, 0.5, CUT)
    assert isinstance(small.conv, nn.Sequential)
    then = run(SplitFedV1(), small, rounds=2)
    assert then.model.conv[0].out_channels == 2
    assert then.metrics[-1]["loss"] < run(SplitFedV1(), small, rounds=1).metrics[-1]["loss"]
