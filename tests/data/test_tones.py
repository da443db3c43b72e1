"""Digits with synthetic tones: the pitch tells the class, and follows from the seed."""

import pytest
import torch

from fsl.data import digits_with_tones
from fsl.data.tones import LOWEST, RATE, STEP, WINDOW
from fsl.errors import ConfigError


def test_the_strongest_pitch_is_that_of_the_class():
    data = digits_with_tones(tone_noise=0.0).test
    strongest = data.inputs["tone"][:, 0, :, 4:12].mean(2).argmax(1)
    expected = LOWEST * STEP ** data.targets.float() / (RATE / WINDOW)
    assert (strongest - expected).abs().max() <= 1.0


def test_pictures_are_the_digits_with_noise_of_the_given_size():
    clean, noisy = digits_with_tones(), digits_with_tones(picture_noise=0.5)
    apart = noisy.train.inputs["picture"] - clean.train.inputs["picture"]
    assert apart.std() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(clean.train.targets, noisy.train.targets)


def test_tones_follow_from_the_seed_and_differ_between_rows_of_a_class():
    one, other, third = (digits_with_tones(seed=seed).test for seed in (1, 1, 2))
    assert torch.equal(one.inputs["tone"], other.inputs["tone"])
    assert not torch.equal(one.inputs["tone"], third.inputs["tone"])
    first, second = (one.targets == 3).nonzero()[:2, 0]
    assert not torch.equal(one.inputs["tone"][first], one.inputs["tone"][second])


def test_noise_below_0_is_refused():
    with pytest.raises(ConfigError, match=r"tone_noise=-1.0: a finite standard deviation"):
        digits_with_tones(tone_noise=-1.0)
