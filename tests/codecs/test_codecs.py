import pytest
import torch

from fsl.codecs import BFloat16, Float16, Identity, Int8, Payload
from fsl.errors import RunError, WireError

CODECS = [Identity(), Float16(), BFloat16(), Int8()]
codecs = pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
halves = pytest.mark.parametrize(("codec", "largest"), [(Float16(), 65504.0), (BFloat16(), 3.3895313892515355e38)])


def inputs():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(32, 6, 4, 4, generator=generator)
    return {
        "normal": normal,
        "relu": normal.relu(),
        "tokens": torch.randn(4, 16, 32, generator=generator),
        "tiny": normal * 1e-3,
        "gradients": normal * 1e-9,
        "subnormal": normal * 1e-39,
        "large": normal * 1e3,
        "shifted": normal * 1e-2 + 1000,
        "constant": torch.full((4, 3), 2.5),
        "zero": torch.zeros(4, 3),
        "one row": normal[:1],
        "not contiguous": normal.transpose(0, 1),
    }


def bound(codec, values):
    """The largest error that a codec's docstring allows, element by element."""
    eps = torch.finfo(values.dtype).eps
    if codec.name == "identity":
        return torch.zeros_like(values)
    # From float64, torch rounds to float32 on the way: a hair more than half a step of the last bit.
    through_float32 = 1 + 2**-12 if values.dtype is torch.float64 else 1
    if codec.name == "float16":
        return (values.abs() * 2**-11).clamp_min(2.0**-25) * through_float32
    if codec.name == "bfloat16":
        return (values.abs() * 2**-8).clamp_min(2.0**-134) * through_float32
    half_a_step = values.max() / 510 - values.min() / 510
    subnormal_steps = 255 * 2.0**-149  # a step below 1.2e-38 is itself rounded
    return half_a_step + 4 * eps * values.abs().max() + subnormal_steps


@codecs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", inputs())
def test_the_error_is_within_the_codecs_bound(codec, name, dtype):
    values = inputs()[name].to(dtype)
    decoded = codec.decode(codec.encode(values))
    assert decoded.shape == values.shape
    assert ((decoded - values).abs() <= bound(codec, values)).all()


@pytest.mark.parametrize(("codec", "name"), [(Float16(), "normal"), (BFloat16(), "normal"), (Int8(), "normal")])
def test_the_bound_is_no_looser_than_it_must_be(codec, name):
    values = inputs()[name]
    error = (codec.decode(codec.encode(values)) - values).abs()
    assert (error / bound(codec, values)).max() > 0.9


@codecs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_dtype_that_was_encoded_is_restored(codec, dtype):
    assert codec.decode(codec.encode(torch.randn(3, 2).to(dtype))).dtype is dtype


@codecs
def test_an_empty_batch_keeps_its_shape(codec):
    assert codec.decode(codec.encode(torch.zeros(0, 3))).shape == (0, 3)


@codecs
def test_encoding_leaves_its_input_as_it_was(codec):
    values = torch.tensor([[1.0, -2.0, 3.4e38]])
    before = values.clone()
    codec.decode(codec.encode(values))
    assert torch.equal(values, before)


@codecs
def test_decoding_leaves_the_payload_as_it_was(codec):
    payload = codec.encode(torch.randn(3, 2))
    assert torch.equal(codec.decode(payload), codec.decode(payload))


def test_identity_copies_nothing():
    values = torch.randn(3, 2)
    assert Identity().decode(Identity().encode(values)) is values


@pytest.mark.parametrize("codec", [Identity(), Float16(), BFloat16()], ids=lambda c: c.name)
def test_nan_stays_nan(codec):
    assert codec.decode(codec.encode(torch.tensor([1.0, float("nan")]))).isnan().tolist() == [False, True]


@halves
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beyond", [3.4e38, float("inf")])
def test_half_precision_saturates_instead_of_overflowing(codec, largest, dtype, beyond):
    decoded = codec.decode(codec.encode(torch.tensor([[beyond, -beyond, 3.0]], dtype=dtype)))
    assert decoded.tolist() == [[largest, -largest, 3.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_int8_refuses_what_has_no_place_on_its_scale(bad):
    with pytest.raises(RunError, match="not finite"):
        Int8().encode(torch.tensor([[1.0, bad]]))


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 3e38), (torch.float64, 1.7e308)])
@pytest.mark.parametrize("smallest", [-1.0, 0.5])
def test_int8_takes_the_widest_range(dtype, largest, smallest):
    values = torch.tensor([[smallest, 0.9, 1.0]], dtype=dtype) * largest
    error = (Int8().decode(Int8().encode(values)) - values).abs().max()
    assert error <= largest / 255 * 1.001


def test_int8_quantizes_a_constant_to_the_same_bytes_everywhere():
    ((_, quantized), _) = Int8().encode(torch.full((2,), 7.0)).arrays
    assert quantized.tolist() == [128, 128]  # and not what a machine makes of 0/0


@codecs
def test_a_payload_of_another_codec_is_refused(codec):
    with pytest.raises(WireError, match=rf"codec '{codec.name}' takes .*; it got 'values' .* of codec 'other'"):
        codec.decode(Payload("other", codec.encode(torch.ones(2)).arrays))


@codecs
@pytest.mark.parametrize("break_it", [lambda arrays: (), lambda arrays: arrays * 2], ids=["none", "twice"])
def test_a_payload_with_other_arrays_is_refused(codec, break_it):
    payload = codec.encode(torch.ones(2))
    with pytest.raises(WireError, match=f"codec '{codec.name}' takes"):
        codec.decode(Payload(payload.codec, break_it(payload.arrays)))


@pytest.mark.parametrize("codec", [Float16(), BFloat16(), Int8()], ids=lambda c: c.name)
def test_a_payload_of_other_dtypes_is_refused(codec):
    arrays = tuple((name, tensor.to(torch.int64)) for name, tensor in codec.encode(torch.ones(2)).arrays)
    with pytest.raises(WireError, match=r"'values' \(int64\)"):
        codec.decode(Payload(codec.name, arrays))


@pytest.mark.parametrize("codec", [Float16(), BFloat16(), Int8()], ids=lambda c: c.name)
def test_a_payload_that_asks_for_integers_is_refused(codec):
    arrays = (*codec.encode(torch.ones(2)).arrays, ("like", torch.empty(0, dtype=torch.uint8)))
    with pytest.raises(WireError, match=r"asks for torch\.uint8; values are floats"):
        codec.decode(Payload(codec.name, arrays))


def test_int8_refuses_a_scale_of_another_shape():
    arrays = (("values", torch.zeros(2, dtype=torch.uint8)), ("scale", torch.zeros(3)))
    with pytest.raises(WireError, match=r"scale of shape \(2,\); it got \(3,\)"):
        Int8().decode(Payload("int8", arrays))
