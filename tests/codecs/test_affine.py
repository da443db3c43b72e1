"""Codecs of few bits: their bytes, errors and draws, and what hostile payloads get."""

import math

import pytest
import torch

from fsl.codecs import Int2, Int4, Int8, Payload, affine
from fsl.codecs.affine import packed, unpacked
from fsl.codecs.codec import CodecCall
from fsl.errors import ConfigError, RunError, WireError
from fsl.run.codec_trial import try_codec
from fsl.seeds import Stream

KINDS = {2: Int2, 4: Int4, 8: Int8}
bits = pytest.mark.parametrize("bits", KINDS)
pers = pytest.mark.parametrize("per", ["tensor", "channel", "sample"])
roundings = pytest.mark.parametrize("stochastic", [False, True], ids=["nearest", "stochastic"])
SHAPES = [(3, 5), (1, 1), (4, 7, 3), (2, 3, 5, 5), (0, 6), (3, 0), (0, 2, 3), (5, 1)]


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def through(codec, values):
    return codec.decode(codec.encode(values))


def spans(values, per):
    """The range that each value belongs to: largest minus smallest, of a shape that goes with the values."""
    dims = {"tensor": range(values.dim()), "channel": [0, *range(2, values.dim())], "sample": range(1, values.dim())}
    over = list(dims[per])
    return values.amax(over, keepdim=True) - values.amin(over, keepdim=True)


@bits
@pers
@roundings
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_error_is_within_half_a_step_or_one(bits, per, stochastic, dtype):
    values = (normal(6, 5, 3, 3) * torch.tensor([1e-3, 1, 100, 1, 1]).view(5, 1, 1) + 2).to(dtype)
    decoded = through(KINDS[bits](per, stochastic), values)
    assert (decoded.shape, decoded.dtype) == (values.shape, dtype)
    step = spans(values.double(), per) / (2**bits - 1)
    rounding = 2 * torch.finfo(dtype).eps * values.double().abs().amax() if per != "channel" else 0
    rounding = rounding + 8 * torch.finfo(dtype).eps * values.double().abs().amax((0, 2, 3), keepdim=True)
    error = (decoded.double() - values.double()).abs()
    assert (error <= step * (1 if stochastic else 0.5) + rounding).all()


@bits
@pers
def test_the_bound_of_the_error_is_reached(bits, per):
    values = normal(6, 5, 40)
    error = (through(KINDS[bits](per), values) - values).abs()
    assert (error / (spans(values, per) / (2**bits - 1) / 2)).max() > 0.95


@bits
@pers
@roundings
def test_every_shape_comes_back(bits, per, stochastic):
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64, torch.float16):
            decoded = through(KINDS[bits](per, stochastic), normal(*shape, dtype=dtype))
            assert (decoded.shape, decoded.dtype) == (shape, dtype)


@bits
@pers
@roundings
def test_constants_come_back_exactly(bits, per, stochastic):
    values = torch.tensor([[[2.5, 2.5]], [[2.5, 2.5]], [[2.5, 2.5]]])
    assert torch.equal(through(KINDS[bits](per, stochastic), values), values)


@bits
@pers
def test_a_value_has_as_many_bits_as_the_name_says(bits, per):
    values = normal(6, 5, 7)
    arrays = dict(KINDS[bits](per).encode(values).named)
    each = math.ceil(35 * bits / 8) * 6 if per == "sample" else math.ceil(210 * bits / 8)
    assert (arrays["values"].dtype, arrays["values"].nbytes) == (torch.uint8, each)
    ranges = {"tensor": 1, "channel": 5, "sample": 6}[per]
    assert arrays["scale"].nbytes == ranges * 2 * 4
    assert set(arrays) == {"values", "scale"}


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("count", range(10))
def test_packed_numbers_are_unpacked_again(bits, count):
    codes = torch.randint(2**bits, (3, count), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
    assert torch.equal(unpacked(packed(codes, bits), bits, count), codes)


def test_numbers_lie_in_the_bytes_that_the_docstring_names():
    assert packed(torch.tensor([[1, 2, 3, 0, 3]], dtype=torch.uint8), 2).tolist() == [[1 + (3 << 2) + (3 << 4), 2]]


@bits
def test_a_channels_range_is_its_own(bits):
    values = normal(8, 3, 4)
    louder = values.clone()
    louder[:, 1] *= 1000
    codec = KINDS[bits]("channel")
    assert torch.equal(through(codec, louder)[:, [0, 2]], through(codec, values)[:, [0, 2]])


@bits
@roundings
@pytest.mark.parametrize("shape", [(6, 7), (6, 3, 5), (6,)], ids=str)
def test_a_row_alone_is_as_in_its_batch(bits, stochastic, shape):
    values = normal(*shape)
    codec = KINDS[bits]("sample", stochastic)
    codec.at(CodecCall(Stream(3, "codec"), 5))
    whole = codec.encode(values)
    decoded = codec.decode(whole)
    for row in range(6):
        alone = codec.encode(values[row : row + 1])
        for (name, one), (other, batch) in zip(alone.named, whole.named):
            assert name == other
            assert torch.equal(one, batch[row : row + 1])
        assert torch.equal(codec.decode(alone), decoded[row : row + 1])


@bits
def test_only_ranges_per_sample_leave_rows_alone(bits):
    assert [KINDS[bits](per).rowwise for per in ("tensor", "channel", "sample")] == [False, False, True]


@bits
@pers
@roundings
def test_the_trial_before_a_run_takes_it(bits, per, stochastic):
    for rows in (4, 1, 0):
        for dtype in (torch.float32, torch.float64):
            try_codec("codec.up", lambda: KINDS[bits](per, stochastic), 3 * normal(rows, 3, 5, dtype=dtype))


COPIES = 40  # of values in a row, each with a draw of its own: they change no range


@bits
@pers
def test_stochastic_rounding_is_unbiased(bits, per):
    """Of T draws with values in [0, 1) the mean is off by more than e with probability below 2 exp(-2 T e^2).

    (Hoeffding's inequality.) With T = 4000 and e = 0.06 that is 6.2e-13 for each of 60 values.
    """
    steps, values = 100, normal(3, 4, 5)
    codec, often = KINDS[bits](per, stochastic=True), values.repeat(1, 1, COPIES)
    total = sum(through(codec.at(CodecCall(Stream(1, "codec"), step)), often).double() for step in range(steps))
    mean = total.unflatten(-1, (COPIES, 5)).mean(-2) / steps
    step = spans(values, per).double() / (2**bits - 1)
    assert ((mean - values).abs() / step).max() < 0.06


@bits
def test_over_all_draws_rounding_is_off_by_less_than_a_thousandth(bits, monkeypatch):
    """Each value is rounded by each draw of 16 bits once."""
    draws = torch.arange(-(2**15), 2**15).to(torch.int16)[:, None]
    monkeypatch.setattr(affine, "_drawn", lambda generator, shape: draws.expand(-1, 26).reshape(shape))
    levels = 2**bits - 1
    places = torch.cat([torch.tensor([0.0, 1e-3, 0.02, 0.5, levels - 0.4, levels]), levels * torch.rand(20)])
    values = (5 + places / levels).expand(2**16, -1).contiguous()
    decoded = through(KINDS[bits](stochastic=True), values).double().mean(0)
    assert ((decoded - values[0]).abs() * levels).max() < 1e-3


@bits
@pers
def test_stochastic_rounding_leaves_the_ends_of_a_range(bits, per):
    values = normal(3, 4, 50)
    over = {"tensor": [0, 1, 2], "channel": [0, 2], "sample": [1, 2]}[per]
    at_ends = (values == values.amax(over, keepdim=True)) | (values == values.amin(over, keepdim=True))
    codec = KINDS[bits](per, stochastic=True)
    for step in range(20):
        decoded = through(codec.at(CodecCall(Stream(1, "codec"), step)), values)
        torch.testing.assert_close(decoded[at_ends], values[at_ends], rtol=4e-7, atol=4e-7)


@pytest.mark.parametrize("per", ["tensor", "sample"])
def test_rounding_errors_of_two_values_are_independent(per):
    """Products of two errors of mean 0 lie in (-1, 1), so that Hoeffding's bound holds for their mean, too.

    It is above e with probability below 2 exp(-T e^2 / 2): with T = 4000 and e = 0.13 that is 4.2e-15.
    """
    draws, values = 4000, normal(4, 6)
    codec, often = Int2(per, stochastic=True), values.repeat(1, COPIES)
    found = [through(codec.at(CodecCall(Stream(1, "c"), s)), often) - often for s in range(draws // COPIES)]
    errors = torch.stack(found).double().unflatten(-1, (COPIES, 6)).movedim(-2, 1).flatten(0, 1)
    errors = errors.flatten(1) / (spans(values, per) / 3).expand_as(values).flatten()
    products = errors.T @ errors / draws
    if per == "sample":  # rows share the draws of a place, each shifted by its own range
        products = products.unflatten(0, (4, 6)).unflatten(2, (4, 6)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    off = products - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 0.13


def test_draws_are_those_of_the_step_and_the_session():
    values = normal(5, 40)
    codec = Int4(stochastic=True)
    first = codec.at(CodecCall(Stream(1, "c"), 0)).encode(values).named[0][1]
    assert torch.equal(first, Int4(stochastic=True).at(CodecCall(Stream(1, "c"), 0)).encode(values).named[0][1])
    assert not torch.equal(first, codec.at(CodecCall(Stream(1, "c"), 1)).encode(values).named[0][1])
    assert not torch.equal(first, codec.at(CodecCall(Stream(2, "c"), 0)).encode(values).named[0][1])


@bits
@roundings
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_comes_back_as_nan_and_alone(bits, stochastic, bad):
    values = normal(4, 9)
    codec = KINDS[bits]("sample", stochastic)
    clean = through(codec, values)
    values[2, 3] = bad
    found = through(codec, values)
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 1, 3]], clean[[0, 1, 3]])


@bits
@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_where_rows_share_a_range(bits, per, bad):
    values = normal(4, 9)
    values[2, 3] = bad
    with pytest.raises(RunError, match=f"codec int{bits} got a value that is not finite"):
        KINDS[bits](per).encode(values)


@bits
@pers
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 3e38), (torch.float64, 1.7e308)])
def test_the_widest_range_is_taken(bits, per, dtype, largest):
    values = torch.tensor([[[-1.0, 0.9, 1.0]]], dtype=dtype) * largest
    error = (through(KINDS[bits](per), values) / 2 - values / 2).abs().max() * 2
    assert error <= largest / (2**bits - 1) * 1.001


@bits
@pers
def test_a_long_row_and_a_large_batch_go_through_in_parts(bits, per):
    for shape in ((3, 70_000), (700, 2, 150)):
        values = normal(*shape)
        step = spans(values, per) / (2**bits - 1)
        assert ((through(KINDS[bits](per), values) - values).abs() <= step / 2 + 2e-6).all()


@bits
@pers
def test_what_is_not_contiguous_is_encoded_as_what_is(bits, per):
    values = normal(6, 4, 5).transpose(0, 2)
    assert torch.equal(through(KINDS[bits](per), values), through(KINDS[bits](per), values.contiguous()))


def test_channels_are_refused_where_rows_have_none():
    with pytest.raises(ConfigError, match=r"int4\.per='channel': values of shape \(4,\) have none; use tensor"):
        Int4("channel").refuse_unfit(torch.Size([4]))


@bits
def test_arguments_are_checked(bits):
    with pytest.raises(ConfigError, match=rf"int{bits}\.per='row': .*tensor, channel, sample"):
        KINDS[bits](per="row")
    with pytest.raises(ConfigError, match=rf"int{bits}\.stochastic='yes': give True or False"):
        KINDS[bits](stochastic="yes")


EIGHT = [(8, "channel"), (8, "sample")]  # 8 bits per tensor: codes of any shape are values of that shape


def changed(payload, **others):
    arrays = tuple((name, others[name](tensor) if name in others else tensor) for name, tensor in payload.arrays)
    return Payload(payload.codec, arrays)


@bits
@pers
@pytest.mark.parametrize(
    "others",
    [
        {"values": lambda t: t.to(torch.int32)},
        {"scale": lambda t: t.double()},
        {"scale": lambda t: t[..., :1]},
        {"scale": lambda t: torch.cat([t, t])},
        {"scale": lambda t: t.new_zeros(())},
        {"scale": lambda t: t.unsqueeze(0)},
    ],
    ids=["codes of another dtype", "a wide scale", "a short scale", "two scales", "a number", "one more dimension"],
)  # fmt: skip
def test_a_payload_that_no_encoder_makes_is_refused(bits, per, others):
    with pytest.raises(WireError) as caught:
        KINDS[bits](per).decode(changed(KINDS[bits](per).encode(normal(4, 3, 5)), **others))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("bits", "per"), [(b, p) for b in KINDS for p in ("tensor", "channel", "sample")][:-3] + EIGHT)
@pytest.mark.parametrize("shape", [(), (9, 9)], ids=["one", "others"])
def test_codes_that_do_not_fit_their_ranges_are_refused(bits, per, shape):
    with pytest.raises(WireError):
        KINDS[bits](per).decode(changed(KINDS[bits](per).encode(normal(4, 3, 5)), values=lambda t: t.new_zeros(shape)))


@pytest.mark.parametrize("bits", [2, 4])
@pers
@pytest.mark.parametrize(
    "shape",
    [
        lambda t: t.new_empty(0, 4, 3, 6),
        lambda t: t.new_empty(0),
        lambda t: t.new_empty(1, 2),
        lambda t: t.new_empty(()),
    ],
    ids=["longer", "none", "not empty", "a number"],
)
def test_a_told_shape_that_does_not_fit_the_bytes_is_refused(bits, per, shape):
    with pytest.raises(WireError):
        KINDS[bits](per).decode(changed(KINDS[bits](per).encode(normal(4, 3, 5)), shape=shape))


@bits
@pers
def test_a_payload_of_more_than_can_have_been_sent_is_refused(bits, per):
    codec = KINDS[bits](per)
    payload = codec.encode(normal(4, 3, 50))
    assert codec.at(CodecCall(Stream(0, "c"), 0, limit=2400)).decode(payload).shape == (4, 3, 50)
    with pytest.raises(WireError, match="no more than 2399 are expected"):
        codec.at(CodecCall(Stream(0, "c"), 0, limit=2399)).decode(payload)


@bits
@pers
def test_values_that_await_a_gradient_are_encoded_as_they_are(bits, per):
    values = normal(4, 3, 5)
    assert torch.equal(through(KINDS[bits](per), values.clone().requires_grad_()), through(KINDS[bits](per), values))


@pers
def test_ends_of_a_range_have_the_outermost_codes_also_where_the_middle_is_rounded(per):
    values = 1000 + 0.01 * normal(50, 3, 7)
    over = {"tensor": [0, 1, 2], "channel": [0, 2], "sample": [1, 2]}[per]
    codec = Int8(per, stochastic=True)
    for step in range(20):
        codes = dict(codec.at(CodecCall(Stream(1, "codec"), step)).encode(values).named)["values"]
        assert set(codes[values == values.amin(over, keepdim=True)].tolist()) == {0}
        assert set(codes[values == values.amax(over, keepdim=True)].tolist()) == {255}


def test_rows_that_lie_alike_in_their_ranges_are_not_all_rounded_alike():
    """Of 400 rows with equal q but for their own draws, a share of q's fraction is rounded up: within 6 deviations."""
    values = torch.tensor([[0.0, 0.25, 0.5, 0.75, 0.9, 1.0]]) * torch.linspace(1, 2, 400)[:, None]
    codec = Int2("sample", stochastic=True).at(CodecCall(Stream(1, "codec"), 0))
    levels = (codec.decode(codec.encode(values)) / values.amax(1, keepdim=True) * 3).double()
    assert (levels.mean(0) - 3 * values[0].double()).abs().max() < 6 * 0.5 / 400**0.5
