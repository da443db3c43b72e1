"""Signs in bits: their bytes, what comes back, rows on their own, and what hostile payloads get."""

import math

import pytest
import torch

from fsl.codecs import Binary, Payload
from fsl.codecs.codec import CodecCall
from fsl.errors import ConfigError, WireError
from fsl.run.codec_trial import try_codec
from fsl.seeds import Stream
from tests.helpers.vectors import run

scales = pytest.mark.parametrize("scale", ["none", "row"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def through(codec, values):
    return codec.decode(codec.encode(values))


@scales
@dtypes
def test_every_shape_and_dtype_comes_back(scale, dtype):
    for shape in ((3, 5), (1, 1), (4, 7, 3), (2, 3, 5, 5), (0, 6), (3, 0), (5,), (0,)):
        decoded = through(Binary(scale), normal(*shape, dtype=dtype))
        assert (decoded.shape, decoded.dtype) == (shape, dtype)


@dtypes
def test_values_become_their_signs(dtype):
    values = torch.tensor([[0.5, -0.0, 0.0, -3.0], [-1e-30, 1e-30, math.inf, -math.inf]]).to(dtype)
    expected = torch.where(values >= 0, 1.0, -1.0).to(dtype)
    assert expected[0].tolist() == [1, 1, 1, -1]
    assert torch.equal(through(Binary(), values), expected)


@dtypes
def test_signs_come_back_to_the_bit(dtype):
    for size in range(1, 20):
        values = normal(5, size).sign().to(dtype)
        assert torch.equal(through(Binary(), values), values)


@scales
@pytest.mark.parametrize("size", [1, 7, 8, 9, 63, 64, 65])
def test_a_row_takes_a_bit_a_value_and_no_more(scale, size):
    arrays = dict(Binary(scale).encode(normal(6, size)).named)
    assert arrays.pop("values").shape == (6, math.ceil(size / 8))
    assert {name: array.nbytes for name, array in arrays.items()} == ({"scale": 6 * 4} if scale == "row" else {})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_rows_scale_is_its_mean_size(size, dtype):
    values = normal(6, size, dtype=dtype)
    scale = dict(Binary("row").encode(values).named)["scale"]
    torch.testing.assert_close(scale.double(), values.double().abs().mean(1), rtol=1e-6, atol=0)


def test_no_other_factor_of_the_signs_has_a_smaller_error():
    values = normal(6, 50)
    error = (through(Binary("row"), values) - values).square().sum(1)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (error < (factor * through(Binary("row"), values) - values).square().sum(1)).all()


@scales
def test_a_row_alone_is_as_in_its_batch(scale):
    values = normal(7, 1003)
    whole = Binary(scale).encode(values)
    for row in range(7):
        alone = Binary(scale).encode(values[row : row + 1])
        assert all(torch.equal(one, all[row : row + 1]) for (_, one), (_, all) in zip(alone.named, whole.named))
        assert torch.equal(Binary(scale).decode(alone), Binary(scale).decode(whole)[row : row + 1])


@scales
def test_the_trial_before_a_run_takes_it(scale):
    for rows in (4, 1, 0):
        try_codec("codec.up", lambda: Binary(scale), 3 * normal(rows, 3, 5))


@scales
def test_a_large_batch_goes_through_in_parts(scale):
    values = normal(700, 2, 150)
    signs = torch.where(values >= 0, 1.0, -1.0)
    size = values.abs().mean((1, 2), keepdim=True) if scale == "row" else 1.0
    torch.testing.assert_close(through(Binary(scale), values), signs * size)


def test_a_row_that_is_not_a_number_is_alone():
    values = normal(3, 9)
    values[1, 4] = math.nan
    found = through(Binary("row"), values)
    assert found.isnan().any(1).tolist() == [False, True, False]


def test_signs_alone_carry_no_cut_gradients():
    with pytest.raises(ConfigError, match="signs do not tell how large gradients are; give scale=row"):
        Binary().refuse_use("down")
    Binary().refuse_use("up")
    Binary("row").refuse_use("down")


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match=r"binary\.scale='tensor': .*none and row"):
        Binary("tensor")
    with pytest.raises(ConfigError, match=r"binary\.scale=1: "):
        Binary(1)


def changed(payload, **others):
    arrays = tuple((name, others[name](tensor) if name in others else tensor) for name, tensor in payload.arrays)
    return Payload(payload.codec, arrays)


@scales
@pytest.mark.parametrize(
    ("array", "other"),
    [
        ("values", lambda t: t.to(torch.int32)),
        ("values", lambda t: t[:, :1]),
        ("values", lambda t: torch.cat([t, t], dim=1)),
        ("values", lambda t: t.flatten()),
        ("values", lambda t: t.new_zeros(())),
        ("shape", lambda t: t.new_empty(0, 90)),
        ("shape", lambda t: t.new_empty(0, 90, 90, 90)),
        ("shape", lambda t: t.new_empty(())),
        ("shape", lambda t: t.new_empty(2, 3, 5)),
    ],
)
def test_a_payload_that_no_encoder_makes_is_refused(scale, array, other):
    with pytest.raises(WireError) as caught:
        Binary(scale).decode(changed(Binary(scale).encode(normal(4, 3, 5)), **{array: other}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [lambda t: t[:3], lambda t: t.double(), lambda t: t.unsqueeze(1), lambda t: t[0]])
def test_a_scale_that_no_encoder_makes_is_refused(other):
    with pytest.raises(WireError, match="codec 'binary' takes"):
        Binary("row").decode(changed(Binary("row").encode(normal(4, 3, 5)), scale=other))


def test_payloads_with_a_scale_and_without_are_not_mixed_up():
    with pytest.raises(WireError, match="codec 'binary' takes 'values'"):
        Binary().decode(Binary("row").encode(normal(4, 3)))
    with pytest.raises(WireError, match="codec 'binary' takes 'values'"):
        Binary("row").decode(Binary().encode(normal(4, 3)))


@scales
def test_a_payload_of_more_than_can_have_been_sent_is_refused(scale):
    payload = Binary(scale).encode(normal(4, 3, 50))
    with pytest.raises(WireError, match="no more than 2399 are expected"):
        Binary(scale).at(CodecCall(Stream(0, "c"), 0, limit=2399)).decode(payload)


@scales
def test_values_that_await_a_gradient_are_encoded_as_they_are(scale):
    values = normal(4, 3, 5)
    assert torch.equal(through(Binary(scale), values.clone().requires_grad_()), through(Binary(scale), values))


@pytest.mark.parametrize("codec", ["binary", ["binary", "zstd"]], ids=str)
def test_signs_of_what_lies_behind_a_relu_are_told_to_say_nothing(codec, caplog):
    for cut, told in (("1", True), ("0", False)):
        caplog.clear()
        run(cut=cut, devices=1, rounds=1, up=codec)
        assert ("no value at this cut is below 0" in caplog.text) is told
