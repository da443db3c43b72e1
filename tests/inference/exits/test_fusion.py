"""A fusion exit joins pictures and tones."""

import torch

from fsl.data import digits_with_tones
from fsl.inference.exits import ExitModel, MLPExit, collect_outputs, train_exits
from fsl.models import PictureAndTone


def test_an_exit_of_both_is_better_than_one_of_pictures_alone():
    data = digits_with_tones(picture_noise=1.5, tone_noise=1.5)
    torch.manual_seed(0)
    backbone, batch = PictureAndTone(width=8), data.train.batch(torch.arange(4))[0]
    both = ExitModel(backbone, {"stage1": "fusion"}, batch)
    alone = ExitModel(backbone, {"stage1": MLPExit(64, 8)}, batch)
    train_exits(both, data, how="joint", epochs=3)
    train_exits(alone, data, epochs=3)
    assert collect_outputs(both, data.test).means()[0] > 0.1 + collect_outputs(alone, data.test).means()[0]
