"""BottleNet++: shapes, gradients, the noisy channel, and int8 behind it."""

import pytest
import torch
from torch import nn

from fsl.codecs import Bottleneck, Chain
from fsl.errors import ConfigError
from fsl.seeds import torch_generator

SHAPES = {(4, 16, 8, 8): (4, 8, 4, 4), (4, 16, 7, 5): (4, 8, 4, 3), (4, 32): (4, 8), (4, 6, 32): (4, 6, 8)}


def values(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch_generator(0, "values"), dtype=dtype)


def built(codec, shape):
    torch.manual_seed(0)
    return codec.modules(torch.Size(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_few_and_between_zero_and_one_and_the_decoder_gives_the_shape_back(shape):
    encoder, decoder = built(Bottleneck(channels=8, stride=2), shape)
    codes = encoder(values(*shape))
    assert codes.shape == SHAPES[shape]
    assert 0 < codes.min() < codes.max() < 1
    assert decoder(codes).shape == shape


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("sides", [(8, 8), (9, 7), (4, 5)])
def test_any_stride_fits_any_image(stride, sides):
    encoder, decoder = built(Bottleneck(channels=1, stride=stride), (2, 16, *sides))
    codes = encoder(values(2, 16, *sides))
    assert codes.shape == (2, 1, *(-(-side // stride) for side in sides))
    assert decoder(codes).shape == (2, 16, *sides)


def test_every_pixel_has_a_part_in_the_codes():
    encoder, _ = built(Bottleneck(channels=4, stride=2), (2, 16, 7, 5))
    given = values(2, 16, 7, 5).requires_grad_()
    encoder.eval()(given).sum().backward()
    assert (given.grad != 0).all()


@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (2, 8), (2, 3, 8)])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_finite_differences(shape, training):
    halves = nn.Sequential(*built(Bottleneck(channels=2, relu=False), shape)).double().train(training)
    given = values(*shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(halves, given)
    assert torch.autograd.gradcheck(lambda *_: halves(given.detach()), tuple(halves.parameters()))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_alone_is_the_row_in_its_batch(shape):
    halves = nn.Sequential(*built(Bottleneck(noise=0.5), shape))
    halves(values(*shape))  # statistics of a batch
    given = values(*shape)
    halves.eval()
    alone = torch.cat([halves(row[None]) for row in given])
    assert (alone - halves(given)).abs().max() <= 1e-5


def test_the_channel_adds_noise_of_its_deviation_in_training_alone():
    encoder, _ = built(Bottleneck(channels=16, stride=1, noise=0.5), (64, 16, 16, 16))
    quiet, _ = built(Bottleneck(channels=16, stride=1), (64, 16, 16, 16))
    given = values(64, 16, 16, 16)
    added = encoder(given) - quiet(given)
    assert added.mean().abs() < 0.01
    assert added.std().item() == pytest.approx(0.5, rel=0.01)
    assert torch.equal(encoder.eval()(given), quiet.eval()(given))


def test_the_noise_follows_torchs_seed():
    encoder, _ = built(Bottleneck(noise=0.5), (4, 32))
    torch.manual_seed(1)
    once = encoder(values(4, 32))
    torch.manual_seed(1)
    assert torch.equal(encoder(values(4, 32)), once)
    assert not torch.equal(encoder(values(4, 32)), once)


def test_an_images_decoder_ends_with_a_relu_unless_told_otherwise():
    shape = (4, 16, 8, 8)
    for relu in (True, False):
        encoder, decoder = built(Bottleneck(relu=relu), shape)
        assert bool((decoder(encoder(values(*shape))) < 0).any()) is not relu


def test_eight_bits_follow_in_a_chain():
    chain = Chain([{"_target_": "fsl.codecs.Bottleneck", "channels": 4}, {"_target_": "fsl.codecs.Int8"}])
    encoder, _ = built(chain.stages[0], (4, 16, 8, 8))
    codes = encoder(values(4, 16, 8, 8)).detach()
    payload = chain.encode(codes)
    assert sum(array.nbytes for _, array in payload.arrays) == 4 * 4 * 4 * 4 + 8  # a byte a code, and the scale
    assert (chain.decode(payload) - codes).abs().max() <= 1 / 255


@pytest.mark.parametrize(
    ("arguments", "shape", "said"),
    [
        ({"channels": 0}, None, "channels=0"),
        ({"stride": 0}, None, "stride=0"),
        ({"noise": -0.1}, None, "noise=-0.1"),
        ({"noise": float("inf")}, None, "noise=inf"),
        ({"channels": "8"}, None, "bottleneck.channels='8'"),
        ({}, (4, 2, 3, 4, 5), r"the cut gives \(4, 2, 3, 4, 5\)"),
        ({}, (4,), "cut elsewhere"),
        ({"channels": 65}, (4, 16, 8, 8), "would become 1040 codes; give fewer channels, or a larger stride"),
        ({"channels": 33}, (4, 32), "a sample of 32 values would become 33 codes; give fewer channels$"),
    ],
)
def test_what_it_cannot_take_is_refused(arguments, shape, said):
    with pytest.raises(ConfigError, match=said):
        Bottleneck(**arguments).modules(torch.Size(shape or (4, 16, 8, 8)))
