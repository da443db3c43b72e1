"""BottleFit: what takes the place of a model's first layers."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import fsl
from fsl.errors import ConfigError
from fsl.models import MLP, LeNet, ResNet8, bottlefit
from fsl.models.bottlefit import EightBits
from fsl.seeds import torch_generator


def images(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch_generator(0, "images"), dtype=dtype)


def stages(**named):
    return nn.Sequential(OrderedDict(named))


def student(sides=(32, 32), replace="block2", channels=3, width=16):
    torch.manual_seed(0)
    return bottlefit(ResNet8((3, *sides), 10), replace, (3, *sides), channels, width)


def test_codes_and_decoded_values_have_the_papers_shapes():
    replaced = nn.Conv2d(3, 512, 8, 8)
    made = bottlefit(stages(first=replaced, second=nn.Flatten()), "first", (3, 224, 224), channels=12)
    codes = made.eval().encoder(images(1, 3, 224, 224))
    assert codes.shape == (1, 12, 29, 29)
    sides = []
    values = codes
    for layer in made.decoder:
        values = layer(values)
        if isinstance(layer, nn.Conv2d):
            sides.append(values.shape[-1])
    assert sides == [30, 31, 30, 29]
    assert values.shape == (1, 512, 28, 28)


def test_in_the_papers_case_the_pool_has_windows_of_two_and_stride_one():
    given = images(2, 4, 29, 29)
    assert torch.allclose(nn.AdaptiveAvgPool2d(28)(given), nn.AvgPool2d(2, 1)(given), atol=1e-6)


@pytest.mark.parametrize("sides", [(32, 32), (33, 20)])
@pytest.mark.parametrize("replace", ["stem", "block1", "block2"])
def test_the_decoder_gives_what_the_next_stage_expects(sides, replace):
    made = student(sides, replace)
    model, order = ResNet8((3, *sides), 10), ["stem", "block1", "block2", "block3"]
    behind = order.index(replace) + 1
    given = images(2, 3, *sides)
    names = [name for name, _ in made.named_children()]
    assert names[:2] == ["encoder", "decoder"]
    assert names[2] == order[behind]
    wanted = nn.Sequential(*list(model)[:behind])(given)
    assert made.decoder(made.encoder(given)).shape == wanted.shape
    assert made(given).shape == (2, 10)


def test_the_cut_comes_behind_the_encoder():
    made = student()
    parts = fsl.split(made)
    codes = parts["front"].eval()(images(2, 3, 32, 32))
    assert torch.equal(codes, made.eval().encoder(images(2, 3, 32, 32)))
    assert torch.equal(parts["back"].eval()(codes), made(images(2, 3, 32, 32)))


def test_the_model_that_was_given_stays_as_it_is():
    model = ResNet8((3, 32, 32), 10).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = bottlefit(model, "block2", (3, 32, 32), 3, 16)
    made(images(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(made.block3.body[0].weight, model.block3.body[0].weight)


def test_eight_bits_round_to_256_levels_of_each_sample_alone():
    given = images(3, 4, 16, 16) * torch.tensor([1.0, 100.0, 1e-3]).view(3, 1, 1, 1)
    rounded = EightBits()(given)
    for row, before in zip(rounded, given):
        assert len(row.unique()) <= 256
        assert (row - before).abs().max() <= (before.max() - before.min()) / 510 * 1.001
    assert torch.equal(EightBits()(given[1:2]), rounded[1:2])
    assert torch.equal(EightBits()(torch.full((1, 3), 2.5)), torch.full((1, 3), 2.5))


def test_the_gradient_goes_straight_through_eight_bits():
    given = images(2, 5).requires_grad_()
    weights = images(2, 5) + 3
    (EightBits()(given) * weights).sum().backward()
    assert torch.equal(given.grad, weights)


def test_gradients_are_those_of_finite_differences_without_the_rounding():
    made = student((16, 16), width=3).double()
    smooth = nn.Sequential(*list(made.encoder)[:-1], made.decoder)
    given = images(2, 3, 16, 16, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(smooth, given, fast_mode=True)


def test_a_row_alone_is_the_row_in_its_batch():
    made = student()
    given = images(4, 3, 32, 32)
    made(given)
    made.eval()
    codes = made.encoder(given)
    alone = torch.cat([made.encoder(row[None]) for row in given])
    step = (codes.max() - codes.min()) / 255
    assert ((alone - codes).abs() > 1e-5).sum() <= 2  # a value between two levels may go to either
    assert (alone - codes).abs().max() <= 1.001 * step
    assert (torch.cat([made.decoder(row[None]) for row in codes]) - made.decoder(codes)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        (nn.Linear(2, 2), {}, "give a Sequential of torch"),
        (ResNet8((3, 32, 32), 10), {"replace": "block9"}, "name a stage that others follow: stem, block1"),
        (ResNet8((3, 32, 32), 10), {"replace": "head"}, "name a stage that others follow"),
        (ResNet8((3, 32, 32), 10), {"channels": 0}, "channels=0"),
        (ResNet8((3, 32, 32), 10), {"input_shape": (3, 8, 8)}, "at least 16 pixels"),
        (ResNet8((3, 32, 32), 10), {"input_shape": (3,)}, "at least 16 pixels"),
        (MLP((3, 32, 32), 10), {"replace": "stage1"}, r"it gives \(1, 128\)"),
        (stages(a=nn.Conv2d(3, 4, 3), encoder=nn.Identity()), {"replace": "a"}, "rename the model's encoder"),
        (LeNet((1, 28, 28), 10), {"replace": 3}, "replace=3"),
    ],
)
def test_what_it_cannot_take_is_refused(model, arguments, said):
    given = {"replace": "block2", "input_shape": (3, 32, 32)} | arguments
    with pytest.raises(ConfigError, match=said):
        bottlefit(model, **given)
