"""No value is off by more than the bound, whatever the values, and no payload from the network breaks the decoder."""

import math

import pytest
import torch

from fsl.codecs import ErrorBounded, Payload
from fsl.codecs.bit_planes import BLOCK, LARGEST, PART, Planes, decode_part, encode_part
from fsl.codecs.codec import MOST_BYTES, CodecCall, pack
from fsl.errors import ConfigError, RunError, WireError
from fsl.run.codec_trial import try_codec
from fsl.seeds import Stream

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BOUNDS = [(1e-1, True), (1e-2, True), (1e-3, True), (1e-7, True), (1e-12, True), (1e-3, False), (3.0, False)]


def inputs(dtype):
    """Values by what is hard about them."""
    generator, info = torch.Generator().manual_seed(0), torch.finfo(dtype)
    normal = torch.randn(3, 700, generator=generator, dtype=torch.float64)
    exponents = torch.rand(3, 700, generator=generator, dtype=torch.float64) * 0.9
    wide = normal.sign() * torch.exp(math.log(info.tiny) + exponents * (math.log(info.max) - math.log(info.tiny)))
    grid = torch.arange(-2000, 2000, dtype=torch.float64) * 0.01  # of which many lie on the borders of steps
    return {
        "normal": normal.to(dtype),
        "relu": normal.relu().to(dtype),
        "sparse": (normal * (normal > 2)).to(dtype),
        "huge range": wide.to(dtype),
        "largest": torch.tensor([[info.max, -info.max, 1.0, -0.0, info.tiny]], dtype=dtype),
        "subnormal": (normal * info.smallest_normal / 16).to(dtype),
        "smallest": torch.tensor([[info.smallest_normal * info.eps, 0.0]], dtype=dtype),
        "constant": torch.full((4, 300), -2.7, dtype=dtype),
        "zeros": torch.zeros(2, 600, dtype=dtype),
        "negative zeros": -torch.zeros(2, 3, dtype=dtype),
        "borders": grid.to(dtype),
        "one outlier": torch.cat([normal[0], torch.tensor([1e4], dtype=torch.float64)]).to(dtype),
        "not contiguous": normal.to(dtype).t(),
        "channels last": normal[:, :192].reshape(3, 4, 6, 8).to(dtype).contiguous(memory_format=torch.channels_last),
        "one": torch.tensor(1.5, dtype=dtype),
        "two parts": normal.repeat(1, 130).to(dtype),
    }


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("name", inputs(torch.float32))
def test_no_value_is_off_by_more_than_the_bound(name, signs):
    for dtype in DTYPES:
        values = inputs(dtype)[name]
        for bound, relative in BOUNDS:
            decoded = ErrorBounded(bound, relative, signs).decode(ErrorBounded(bound, relative, signs).encode(values))
            assert (decoded.shape, decoded.dtype) == (values.shape, values.dtype)
            limit = bound * float(values.abs().max()) if relative else bound
            assert float((decoded.double() - values.double()).abs().max()) <= limit, (bound, relative)
            assert not decoded[values == 0].any(), "zeros are exact"
            if signs:
                assert torch.equal(decoded.sign(), values.sign())


def test_the_bound_is_used_up():
    values = torch.randn(64, 100, generator=torch.Generator().manual_seed(1))
    error = (ErrorBounded().decode(ErrorBounded().encode(values)) - values).abs().max() / values.abs().max()
    assert 0.0099 < float(error) <= 0.01


def size(values, **options):
    return sum(array.nbytes for _, array in ErrorBounded(**options).encode(values).arrays) * 8 / values.numel()


def test_bits_follow_the_values():
    relu = torch.randn(1 << 18, generator=torch.Generator().manual_seed(2)).relu()
    assert size(torch.zeros(1 << 18)) < 0.04
    assert 3 < size(relu) < 4 < size(relu * 2 - 1) < 7
    assert size(relu, bound=1e-12) < 32.1, "what does not get smaller is sent as it is"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(RunError, match="not finite"):
        ErrorBounded().encode(torch.tensor([[1.0, bad]]))


def test_an_empty_batch_keeps_its_shape():
    assert ErrorBounded().decode(ErrorBounded().encode(torch.zeros(0, 3, dtype=torch.float64))).shape == (0, 3)


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_it_keeps_the_contract_of_codecs(rows):
    try_codec("codec.up", ErrorBounded, torch.randn(rows, 6, 5, 5, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"bound": 0.0}, r"bound=0\.0: the largest error"),
        ({"bound": 1.0}, r"bound=1\.0: .* below 1"),
        ({"bound": float("inf"), "relative": False}, r"bound=inf: .* finite"),
        ({"bound": "x"}, r"error_bounded\.bound='x': give a number"),
    ],
)
def test_arguments_are_checked(options, line):
    with pytest.raises(ConfigError, match=line):
        ErrorBounded(**options)


def test_numbers_of_all_widths_come_back():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(-(1 << k), 1 << k, (BLOCK,), generator=generator) for k in range(30)]
    rows += [row * (torch.rand(BLOCK, generator=generator) > 0.8) for row in rows]
    rows += [torch.full((BLOCK,), LARGEST), torch.full((BLOCK,), -LARGEST), torch.zeros(BLOCK)]
    numbers = torch.cat([row.int() for row in rows]).clamp(-LARGEST, LARGEST)
    kinds, bits = encode_part(numbers)
    reader = Planes(bits)
    assert torch.equal(decode_part(kinds, reader), numbers)
    reader.refuse_more()


def good():
    values = torch.randn(3, 400, generator=torch.Generator().manual_seed(0)).relu()
    return dict(ErrorBounded().encode(values).arrays)


def changed(**arrays):
    return Payload("error_bounded", tuple((good() | arrays).items()))


@pytest.mark.parametrize(
    "payload",
    [
        changed(bits=good()["bits"][:-1]),
        changed(bits=torch.cat([good()["bits"], torch.zeros(1, dtype=torch.uint8)])),
        changed(bits=good()["bits"].view(1, -1)),
        changed(kinds=good()["kinds"][:-1]),
        changed(kinds=torch.full_like(good()["kinds"], 255)),
        changed(step=torch.tensor([float("nan")], dtype=torch.float64)),
        changed(step=torch.tensor([-1.0], dtype=torch.float64)),
        changed(step=torch.empty(0, dtype=torch.float64)),
        changed(step=torch.tensor([1.0])),
        changed(places=torch.tensor([0], dtype=torch.int32)),
        changed(places=torch.tensor([1200], dtype=torch.int32), exact=torch.zeros(1)),
        changed(places=torch.tensor([-1], dtype=torch.int32), exact=torch.zeros(1)),
        changed(shape=torch.empty(0, 1 << 40, dtype=torch.uint8)),
        changed(shape=torch.empty(1, 3, dtype=torch.uint8)),
        changed(like=torch.empty(0, dtype=torch.int64)),
        Payload("error_bounded", ()),
        Payload("other", tuple(good().items())),
        pack("error_bounded", torch.float64, ("raw", torch.zeros(3))),
    ],
)
def test_a_payload_that_is_none_is_refused_in_one_line(payload):
    with pytest.raises(WireError) as refused:
        ErrorBounded().decode(payload)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("masked", [0, 1 << 5])
def test_a_number_beyond_the_largest_is_refused(masked):
    kinds = torch.tensor([31 + masked], dtype=torch.uint8)
    bits = torch.full(((31 + bool(masked)) * BLOCK // 8,), 255, dtype=torch.uint8)
    step, none = torch.ones(1, dtype=torch.float64), torch.empty(0)
    arrays = [("step", step), ("kinds", kinds), ("bits", bits), ("places", none.int()), ("exact", none)]
    with pytest.raises(WireError, match="a number beyond"):
        ErrorBounded().decode(pack("error_bounded", torch.float32, *arrays, shape=(BLOCK,)))


def test_a_bomb_is_refused_before_anything_is_made():
    values = torch.zeros(1, 4 * PART)
    payload = ErrorBounded().encode(values)
    stream = Stream(0, "codec")
    with pytest.raises(WireError, match="no more than 1000 are expected"):
        ErrorBounded().at(CodecCall(stream, 0, 1000)).decode(payload)
    assert torch.equal(ErrorBounded().at(CodecCall(stream, 0, MOST_BYTES)).decode(payload), values)
