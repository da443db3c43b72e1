"""Codecs that give back each bit: any dtype, no growth, and what damaged or hostile bytes come to."""

import random
import sys
import tracemalloc

import pytest
import torch

from fsl.codecs import Payload, Rans, Zstd
from fsl.codecs.codec import CodecCall
from fsl.codecs.codec_choice import codec_spec
from fsl.errors import ConfigError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import read_upload, upload_frame
from fsl.messages.heads import read_frame
from fsl.seeds import Stream

codecs = pytest.mark.parametrize("codec", [Zstd(), Rans()], ids=lambda codec: codec.name)
_CODED = (
    "66ec662532dfabca1ee5d62a031515e79b442b7f5a9b54e87c92ba93f21a85429d069"
    "7a01b6cc3898b9839531f6d5d44ad9caae022ed1630c56262241ead84000030818f6d"
)
_FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
_DTYPES = [*_FLOATS, torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool]


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def size(payload):
    return sum(array.nbytes for _, array in payload.arrays)


def skewed(count=20_000):
    """Bytes of few values, and of known entropy."""
    generator = torch.Generator().manual_seed(0)
    return torch.multinomial(torch.tensor([0.7, 0.2, 0.05, 0.05]), count, True, generator=generator).to(torch.uint8)


@codecs
@pytest.mark.parametrize("dtype", _DTYPES)
def test_every_bit_comes_back_over_the_wire(codec, dtype):
    for shape in ((40, 30), (7, 3, 5, 5), (1, 1), (0, 3), (3, 0), (), (2000,)):
        values = (normal(*shape) > 1) if dtype is torch.bool else (normal(*shape) * 3).relu().to(dtype)
        payload = codec.encode(values)
        message, data = read_frame(upload_frame(0, 1, 0, payload, None), pb.ToEdge)
        decoded = codec.decode(read_upload(message.upload, data)[0])
        assert (decoded.dtype, decoded.shape, bits(decoded)) == (values.dtype, values.shape, bits(values))


@codecs
def test_what_is_no_number_keeps_its_bits(codec):
    odd = torch.tensor([0x7FC00001, 0x7F800000, -0x800000, 0x7FFFFFFF, -0x80000000, 1], dtype=torch.int32)
    values = odd.repeat(500).view(torch.float32)
    payload = codec.encode(values)
    assert payload.arrays[0][0] == "packed"
    assert bits(codec.decode(payload)) == bits(values)


@codecs
def test_a_tensor_that_is_not_contiguous_is_packed(codec):
    values = normal(50, 60).relu().t()
    assert torch.equal(codec.decode(codec.encode(values)), values)


@codecs
@pytest.mark.parametrize("count", [0, 1, 3, 50, 100_000])
def test_what_cannot_be_packed_does_not_grow(codec, count):
    values = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert size(codec.encode(values)) == count
    assert torch.equal(codec.decode(codec.encode(values)), values)


@codecs
def test_what_is_packed_can_be_written_to(codec):
    decoded = codec.decode(codec.encode(torch.zeros(100)))
    decoded += 1
    assert decoded.sum() == 100


def test_rans_takes_the_entropy_of_the_bytes():
    values = skewed()
    shares = torch.bincount(values).double() / len(values)
    entropy = -(shares * shares.log2()).sum() * len(values) / 8
    table, check = 32 + 2 * 4, 4
    assert size(Rans().encode(values)) == pytest.approx(float(entropy) + table + check, abs=8)


def test_rans_makes_the_same_bytes_on_each_machine():
    values = torch.arange(97).remainder(5).remainder(3).to(torch.uint8)
    packed = Rans().encode(values.repeat(3)).arrays[0][1].numpy().tobytes()
    assert packed.hex().lstrip("e0") == _CODED


def test_zstd_packs_closer_at_a_higher_level():
    values = normal(100, 300).relu()
    assert size(Zstd(level=19).encode(values)) < size(Zstd(level=1).encode(values)) < values.nbytes


@pytest.mark.parametrize("level", [0, 23, -1])
def test_a_level_that_zstd_has_not_is_refused(level):
    with pytest.raises(ConfigError, match=f"level={level}: from 1, the fastest, to 22"):
        Zstd(level)


@pytest.mark.parametrize(("name", "library"), [("zstd", "zstandard"), ("rans", "constriction")])
def test_a_library_that_is_not_installed_is_said_in_a_line(name, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"{library} is not installed; pip install 'fsl-flower\[codecs\]'"):
        codec_spec("codec.up", name)


# Damaged and hostile bytes.


def with_bytes(payload, data, of=None):
    told = payload.arrays[1][1] if of is None else of
    return Payload(payload.codec, (("packed", torch.tensor(list(data), dtype=torch.uint8)), ("of", told)))


@codecs
def test_thousands_of_damaged_payloads_are_refused(codec):
    values = torch.cat([(normal(300) * 9).round(), torch.zeros(300)])
    payload = codec.at(CodecCall(Stream(0, "codec"), 1, limit=values.nbytes)).encode(values)
    whole = bytes(payload.arrays[0][1].tolist())
    draw = random.Random(0)
    tracemalloc.start()
    refused, lines = 0, set()
    for _ in range(3000):
        data = bytearray(whole)
        match draw.randrange(4):
            case 0:
                del data[draw.randrange(len(data)) :]
            case 1:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            case 2:
                data += draw.randbytes(draw.randrange(1, 9))
            case 3:
                start = draw.randrange(len(data))
                data[start : start + 20] = draw.randbytes(draw.randrange(30))
        if bytes(data) != whole:
            try:  # a frame's unused bits change nothing of what it stands for
                assert torch.equal(codec.decode(with_bytes(payload, data)), values)
            except WireError as error:
                lines.add(str(error))
                refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 2800
    assert not [line for line in lines if "\n" in line]
    assert peak < 3_000_000


@codecs
def test_bytes_of_chance_are_refused(codec):
    payload, draw = codec.encode(torch.zeros(1000)), random.Random(1)
    for _ in range(500):
        with pytest.raises(WireError):
            codec.decode(with_bytes(payload, draw.randbytes(draw.randrange(200))))


@codecs
def test_more_than_a_session_expects_is_refused_before_room_is_made(codec):
    payload = codec.encode(torch.zeros(50_000_000, dtype=torch.uint8))
    assert size(payload) < 10_000
    codec = codec.__class__().at(CodecCall(Stream(0, "codec"), 1, limit=1_000_000))
    tracemalloc.start()
    with pytest.raises(WireError, match="no more than 1000000 are expected"):
        codec.decode(payload)
    small = torch.empty(0, 1_000_000, dtype=torch.uint8)
    with pytest.raises(WireError):  # told to be small, and large
        codec.decode(with_bytes(payload, payload.arrays[0][1].tolist(), small))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@codecs
@pytest.mark.parametrize(
    "of",
    [
        torch.empty(0, 999),
        torch.empty(0, 1001),
        torch.empty(0, 1000, dtype=torch.float64),
        torch.empty(0, 0),
        torch.empty(1, 1000),
        torch.tensor(1.0),
    ],
)
def test_another_size_than_what_was_packed_is_refused(codec, of):
    payload = codec.encode(normal(1000).relu())
    with pytest.raises(WireError):
        codec.decode(with_bytes(payload, payload.arrays[0][1].tolist(), of))


@codecs
def test_truth_values_are_0_or_1(codec):
    payload = codec.encode(torch.full((1000,), 2, dtype=torch.uint8))
    with pytest.raises(WireError, match="neither 0 nor 1"):
        codec.decode(with_bytes(payload, payload.arrays[0][1].tolist(), torch.empty(0, 1000, dtype=torch.bool)))


@codecs
def test_payloads_of_other_arrays_are_refused(codec):
    payload = codec.encode(torch.zeros(1000))
    packed, of = payload.arrays
    other = Rans() if codec.name == "zstd" else Zstd()
    wrong = [
        Payload(codec.name, ()),
        Payload(codec.name, (packed,)),
        Payload(codec.name, (packed, of, of)),
        Payload(codec.name, (("plain", of[1]), packed)),
        Payload(codec.name, (("packed", packed[1].to(torch.int64)), of)),
        Payload(codec.name, (("packed", packed[1].view(1, -1)), of)),
        other.encode(torch.zeros(1000)),
        Payload(codec.name, other.encode(torch.zeros(1000)).arrays),
    ]
    for one in wrong:
        with pytest.raises(WireError):
            codec.decode(one)


def test_rans_refuses_words_below_those_of_its_bytes():
    payload = Rans().encode(skewed())
    data, table = bytes(payload.arrays[0][1].tolist()), 32 + 2 * 4
    with pytest.raises(WireError, match="words are left behind the last byte"):
        Rans().decode(with_bytes(payload, data[:table] + b"\1\2\3\4" + data[table:]))
