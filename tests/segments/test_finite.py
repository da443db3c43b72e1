"""A step's losses and what it made say whether it may be applied."""

import math

import pytest
import torch

from fsl.segments.finite import usable


@pytest.mark.parametrize(
    ("losses", "limit", "fits"),
    [
        ([1.0, 2.0], 2.0, True),
        ([1.0, 2.5], 2.0, False),
        ([1.0, 1e30], math.inf, True),
        ([1.0, math.inf], math.inf, False),
        ([-math.inf, 1.0], 2.0, False),
        ([math.nan, 1.0], math.inf, False),
        ([], 2.0, True),
        ([math.nan], None, True),
    ],
)
def test_losses_are_finite_and_within_the_limit(losses, limit, fits):
    assert usable([torch.tensor(loss) for loss in losses], (), limit) == fits


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_a_step_made_is_finite(value):
    made = [None, torch.tensor([1, 2]), torch.tensor([0.0, value])]
    assert not usable([torch.tensor(1.0)], made, math.inf)
    assert usable([torch.tensor(1.0)], made[:2], math.inf)
