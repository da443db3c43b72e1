"""A stored Huffman table: what it saves, what it never saw, and payloads that nobody sends."""

import heapq
import math

import numpy as np
import pytest
import torch

from fsl.codecs import Chain, Huffman, Payload, fit_frequencies
from fsl.codecs.codec import CodecCall
from fsl.codecs.huffman_table import BLOCK, ESCAPE, HuffmanTable
from fsl.errors import ConfigError, WireError
from fsl.seeds import torch_generator

SKEWED = [900, 60, 20, 10, 5, 5]


def drawn(*shape, weights=SKEWED):
    generator = torch_generator(0, "bytes")
    found = torch.multinomial(torch.tensor(weights, dtype=torch.float64), math.prod(shape), True, generator=generator)
    return found.view(shape).to(torch.uint8)


def there_and_back(codec, values):
    return codec.decode(codec.encode(values))


def nbytes(payload):
    return sum(array.nbytes for _, array in payload.arrays)


@pytest.mark.parametrize(
    "values",
    [
        drawn(7, 3, 5),
        drawn(BLOCK),
        drawn(2 * BLOCK + 1),
        torch.zeros(0, 4, dtype=torch.uint8),
        drawn(1),
        torch.arange(256, dtype=torch.uint8),
        torch.full((3,), 255, dtype=torch.uint8),
        drawn(4, 6).T,
        torch.tensor(7, dtype=torch.uint8),
    ],
    ids=["few", "a block", "three blocks", "empty", "one", "all bytes", "unseen", "not contiguous", "a number"],
)
def test_bytes_come_back_whether_seen_or_not(values):
    assert torch.equal(there_and_back(Huffman(SKEWED), values), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.int8])
def test_other_dtypes_go_as_they_are(dtype):
    values = torch.randn(3, 4).to(dtype)
    assert there_and_back(Huffman(SKEWED), values).dtype is dtype
    assert torch.equal(there_and_back(Huffman(SKEWED), values), values)


def test_a_code_is_as_short_as_huffmans_rule_makes_it():
    values = drawn(100_000)
    table = HuffmanTable(SKEWED)
    heap = [*SKEWED, 1]
    heapq.heapify(heap)
    inner = 0  # a tree's weighted length is the sum of its inner nodes' weights
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        inner += both
        heapq.heappush(heap, both)
    assert sum(n * table.lengths[s] for s, n in [*enumerate(SKEWED), (ESCAPE, 1)]) == inner
    bits = sum(table.lengths[byte] * count for byte, count in enumerate(fit_frequencies(values)))
    assert nbytes(Huffman(SKEWED).encode(values)) <= bits / 8 + 7 * 5  # of blocks: a size, and a byte that is not full


@pytest.mark.parametrize("counts", [[1], [1] * 256, [0, 0, 3], [*(2**k for k in range(41))], [1, 1 << 40]])
def test_codes_have_no_prefix_in_common_and_at_most_fifteen_bits(counts):
    lengths = HuffmanTable(counts).lengths
    assert max(lengths.values()) <= 15
    assert sum(2.0**-size for size in lengths.values()) == 1


def test_a_byte_never_seen_costs_the_escape_and_eight_bits():
    table = HuffmanTable(SKEWED)
    coded = table.encode(np.full(800, 77, np.uint8))
    assert len(coded) == 100 * (table.lengths[ESCAPE] + 8)


def test_frequencies_are_counted_of_codes():
    assert fit_frequencies(torch.tensor([[0.0, 2.0], [2.0, 4.0]])) == [1, 0, 2, 0, 1]
    with pytest.raises(ConfigError, match="codes from 0 to 255"):
        fit_frequencies(torch.tensor([256.0]))


@pytest.mark.parametrize("frequencies", [[], [0, 0], [1] * 257, [-1, 2], [2**41]])
def test_what_are_no_frequencies_is_refused(frequencies):
    with pytest.raises(ConfigError, match="give up to 256 counts"):
        Huffman(frequencies)


def test_it_follows_int8_in_a_chain():
    chain = Chain([{"_target_": "fsl.codecs.Int8"}, {"_target_": "fsl.codecs.Huffman", "frequencies": SKEWED}])
    values = torch.randn(4, 5)
    alone = Chain([{"_target_": "fsl.codecs.Int8"}])
    assert torch.equal(there_and_back(chain, values), there_and_back(alone, values))


def payload(data, *shape):
    told = torch.empty(0, *shape, dtype=torch.uint8)
    return Payload("huffman", (("values", torch.tensor(data, dtype=torch.uint8)), ("shape", told)))


@pytest.mark.parametrize(
    "hostile",
    [
        payload([0], 9),
        payload([], 1),
        payload([0] * 50, 10),
        payload([0, 0], 8),
        payload([255], 8),
        payload([255] * 4, 3),
        payload([0], 0),
        payload([255] * 8192, 2 * BLOCK),
        payload([0] * 4 + [0] * 6000, 2 * BLOCK),
        payload([[0]], 1),
        Payload("huffman", (("values", torch.zeros(1, dtype=torch.uint8)),)),
        Payload("huffman", (("values", torch.zeros(1)), ("shape", torch.empty(0, 1)))),
        Payload("int8", (("plain", torch.zeros(1)),)),
        Payload("huffman", ()),
    ],
    ids=[
        "more symbols than bits",
        "no bytes",
        "too many bytes",
        "a byte left over",
        "symbols that end beyond the bytes",
        "an escape that is broken off",
        "bytes for no symbols",
        "a block that ends beyond the bytes",
        "a block of no bytes",
        "a table of bytes",
        "no shape",
        "another dtype",
        "another codec",
        "no arrays",
    ],
)
def test_a_payload_that_nobody_sends_is_refused(hostile):
    with pytest.raises(WireError):
        Huffman(SKEWED).decode(hostile)


def test_a_told_shape_beyond_the_limit_is_refused_before_anything_is_decoded():
    codec = Huffman(SKEWED)
    codec._call = CodecCall(limit=10)
    with pytest.raises(WireError, match="no more than 10 are expected"):
        codec.decode(codec.encode(drawn(11)))


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_decode_or_are_refused(seed):
    data = torch.randint(256, (40,), generator=torch_generator(seed, "hostile")).tolist()
    for count in (1, 60, 120, 250):
        try:
            found = Huffman(SKEWED).decode(payload(data, count))
        except WireError:
            continue
        assert found.shape == (count,)
