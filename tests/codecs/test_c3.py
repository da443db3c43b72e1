"""C3-SL from first principles: what circular convolution with fixed keys keeps, and what gradients go through it."""

import pytest
import torch

from fsl.codecs import C3
from fsl.codecs.codec import CodecCall
from fsl.codecs.through import Codes
from fsl.errors import ConfigError, WireError


def values(rows, *shape, dtype=torch.float32):
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def there_and_back(codec, given):
    return type(codec)(*codec._built_from[0], **codec._built_from[1]).decode(codec.encode(given))


@pytest.mark.parametrize("ratio", [1, 2, 4, 8, 16])
def test_the_error_energy_is_about_the_ratio(ratio):
    given = values(64, 2048)
    error = (there_and_back(C3(ratio), given) - given).square().sum() / given.square().sum()
    assert error == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8, 16])
def test_keys_of_unit_modulus_have_one_error_less_and_are_exact_at_1(ratio):
    given = values(64, 2048)
    error = (there_and_back(C3(ratio, unit=True), given) - given).square().sum() / given.square().sum()
    assert error == pytest.approx(ratio - 1, rel=0.1, abs=1e-10)


def test_the_fft_is_the_paper_s_circular_convolution():
    given, codec = values(2, 9, dtype=torch.float64), C3(2)
    (codes,) = codec.project(given).values
    keys = torch.fft.irfft(codec._keys(9, torch.zeros((), dtype=torch.complex128)), n=9)
    direct = sum(k[i] * torch.roll(z, i) for z, k in zip(given, keys) for i in range(9))
    assert keys.norm(dim=1) == pytest.approx(torch.ones(2))
    assert torch.allclose(codes, direct, atol=1e-12)
    restored = codec.restore(Codes(codes[None]), given.shape)
    correlated = torch.stack([sum(k[i] * torch.roll(codes, -i) for i in range(9)) for k in keys])
    assert torch.allclose(restored, correlated, atol=1e-12)


@pytest.mark.parametrize(("rows", "ratio"), [(4, 2), (5, 2), (3, 4)])
def test_gradients_are_those_of_finite_differences(rows, ratio):
    codec, given = C3(ratio), values(rows, 3, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: codec.restore(codec.project(z), z.shape), given)


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_the_gradient_at_the_codes_is_longer_by_the_root_of_the_ratio(ratio):
    codec, given = C3(ratio), values(64, 2048)
    codes = codec.project(given).values.requires_grad_()
    codec.restore(Codes(codes), given.shape).backward(gradient := torch.randn_like(given))
    assert codes.grad.numel() * ratio == gradient.numel()
    assert codes.grad.norm() / (gradient.norm() / ratio**0.5) == pytest.approx(ratio**0.5, rel=0.05)


def test_keys_follow_from_the_seed():
    given = values(4, 32)
    assert torch.equal(there_and_back(C3(2, seed=1), given), C3(2, seed=1).decode(C3(2, seed=1).encode(given)))
    assert not torch.equal(C3(2, seed=1).encode(given).arrays[0][1], C3(2, seed=2).encode(given).arrays[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 7])
def test_a_ragged_group_is_padded_not_dropped(rows, dtype):
    given = values(rows, 3, 5).to(dtype)
    found = there_and_back(C3(4, unit=True), given)
    assert (found.shape, found.dtype) == (given.shape, dtype)
    if rows == 1:  # alone in its group: nothing disturbs it
        assert torch.allclose(found, given, atol=0.05)


def test_wrong_values_are_refused():
    with pytest.raises(ConfigError, match="ratio=0: how many rows travel as one, 1 or more"):
        C3(0)
    with pytest.raises(ConfigError, match=r"c3.ratio='two'"):
        C3("two")
    with pytest.raises(ConfigError, match="ratio=9: so many rows travel as one, and a batch has 8; lower it"):
        C3(9).refuse_unfit(torch.Size([8, 4]))


@pytest.mark.parametrize(
    ("codes", "shape"),
    [
        (torch.zeros(2, 6), (5, 6)),
        (torch.zeros(1, 6), (2, 7)),
        (torch.zeros(6), (1, 6)),
        (torch.zeros(1, 0), (1, 0)),
        (torch.zeros(1, 6), (2, 0)),
    ],
)
def test_codes_that_fit_no_values_are_refused(codes, shape):
    with pytest.raises(WireError, match="codec 'c3' got codes of shape"):
        C3(2).restore(Codes(codes), torch.Size(shape))


def test_a_shape_larger_than_anything_sent_is_refused():
    codec = C3(1 << 14)
    payload = codec.encode(values(1, 64))
    bomb = [(n, torch.empty(0, 1 << 14, 64, dtype=torch.uint8) if n == "shape" else t) for n, t in payload.arrays]
    with pytest.raises(WireError, match="stands for values of shape"):
        codec.at(CodecCall(codec._call.stream, 0, 1 << 16)).decode(type(payload)(payload.codec, tuple(bomb)))
