"""Digits with synthetic tones: the pitch tells the class, and an exit of both is better than one of pictures."""

import pytest
import torch

from fsl.errors import ConfigError
from fsl.inference.exits import (
    ExitModel,
    MLPExit,
    PictureAndTone,
    collect_outputs,
    digits_with_tones,
    train_exits,
)
from fsl.inference.exits.audio_visual import LOWEST, RATE, STEP, WINDOW


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


def test_an_exit_of_both_is_better_than_one_of_pictures_alone():
    data = digits_with_tones(picture_noise=1.5, tone_noise=1.5)
    torch.manual_seed(0)
    backbone, batch = PictureAndTone(width=8), data.train.batch(torch.arange(4))[0]
    both = ExitModel(backbone, {"stage1": "fusion"}, batch)
    alone = ExitModel(backbone, {"stage1": MLPExit(64, 8)}, batch)
    train_exits(both, data, how="joint", epochs=3)
    train_exits(alone, data, epochs=3)
    assert collect_outputs(both, data.test).means()[0] > 0.1 + collect_outputs(alone, data.test).means()[0]


def test_noise_below_0_is_refused():
    with pytest.raises(ConfigError, match=r"tone_noise=-1.0: a finite standard deviation"):
        digits_with_tones(tone_noise=-1.0)
