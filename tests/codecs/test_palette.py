"""Vectors as a palette and indices: to the bit, in few bytes, and refused where no encoder made them."""

import pytest
import torch

from fsl.codecs import palette
from fsl.codecs.codec import Payload
from fsl.codecs.palette import (
    distinct,
    index_bits,
    pack_indices,
    palette_payload,
    read_palette,
    unpack_indices,
)
from fsl.errors import WireError

NAN = float("nan")


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("count", "bits"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (512, 9), (513, 10)])
def test_an_index_has_the_bits_that_it_needs(count, bits):
    assert index_bits(count) == bits


@pytest.mark.parametrize("bits", [0, 1, 3, 7, 8, 9, 16, 31])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 100])
def test_packed_indices_come_back(bits, count):
    indices = torch.randint(0, 1 << bits, (count,), generator=draws())
    data = pack_indices(indices, bits)
    assert (data.dtype, len(data)) == (torch.uint8, -(-count * bits // 8))
    assert torch.equal(unpack_indices("x", data, bits, count), indices)


def test_packed_bits_are_the_same_everywhere():
    assert pack_indices(torch.tensor([1, 2, 3]), 3).tolist() == [0b11_010_001, 0b0]
    assert pack_indices(torch.tensor([5, 7]), 3).tolist() == [0b111_101]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_distinct_vectors_give_back_the_bits(dtype):
    book = torch.randn(5, 3, generator=draws()).to(dtype)
    given = book[torch.randint(0, 5, (100,), generator=draws(1))]
    rows, places = distinct(given)
    assert rows.shape == (5, 3)
    assert torch.equal(rows[places], given)


def test_vectors_are_distinct_by_their_bits():
    given = torch.tensor([[0.0, NAN], [-0.0, NAN], [0.0, NAN], [0.0, 1.0]])
    rows, places = distinct(given)
    assert len(rows) == 3
    assert torch.equal(rows[places].view(torch.int32), given.view(torch.int32))


def test_vectors_whose_hashes_are_equal_stay_apart(monkeypatch):
    monkeypatch.setattr(palette.torch, "randint", lambda *_, **__: torch.zeros(2, dtype=torch.int64))  # a plain sum
    given = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])
    rows, places = distinct(given)
    assert torch.equal(rows[places], given)


def test_vectors_may_be_none():
    rows, places = distinct(torch.empty(0, 3))
    assert (rows.shape, places.shape) == ((0, 3), (0,))


def payload(book=None, places=None):
    book = torch.randn(2, 3, 4, generator=draws()) if book is None else book
    places = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]]) if places is None else places
    return palette_payload("x", torch.float32, book, places, torch.Size((5, 8)))


def test_a_palette_and_indices_come_back_as_vectors():
    sent = payload()
    assert [(name, t.nbytes) for name, t in sent.named] == [("values", 3), ("palette", 2 * 3 * 4 * 4)]
    book = dict(sent.arrays)["palette"]
    read = read_palette("x", sent, (2, 5, 4), torch.float32, 3)
    assert torch.equal(read[0], book[0, [0, 1, 2, 0, 1]])
    assert torch.equal(read[1], book[1, [2, 2, 1, 0, 0]])


def test_an_index_beyond_the_palette_is_refused():
    with pytest.raises(WireError, match="an index 3 into a palette of 3"):
        read_palette("x", payload(places=torch.full((2, 5), 3)), (2, 5, 4), torch.float32, 3)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data.repeat(2), lambda data: data.view(1, -1)])
def test_indices_of_other_bytes_are_refused(change):
    (_, data), *others = payload().arrays
    with pytest.raises(WireError, match="bytes for 10 indices of 2 bits"):
        read_palette("x", Payload("x", (("values", change(data)), *others)), (2, 5, 4), torch.float32, 3)


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 3, 4), (2, 0, 4), (2, 4, 4), (6, 4), ()])
def test_a_palette_of_another_shape_is_refused(shape):
    with pytest.raises(WireError, match=r"it takes one of shape \(2, up to 3, 4\)"):
        read_palette("x", payload(book=torch.zeros(shape)) if len(shape) > 1 else _scalar(), (2, 5, 4), _FLOAT, 3)


_FLOAT = torch.float32


def _scalar():
    return Payload("x", tuple((name, torch.zeros(()) if name == "palette" else t) for name, t in payload().arrays))


@pytest.mark.parametrize("name", ["values", "palette"])
def test_arrays_of_another_dtype_are_refused(name):
    arrays = tuple((n, t.to(torch.int32) if n == name else t) for n, t in payload().arrays)
    with pytest.raises(WireError, match=rf"'{name}' \(int32\)"):
        read_palette("x", Payload("x", arrays), (2, 5, 4), torch.float32, 3)
