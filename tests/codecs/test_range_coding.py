import sys

import numpy as np
import pytest

from fsl.codecs.code_symbols import LARGEST, SYMBOLS, codes_of, octaves_of, symbols_of
from fsl.codecs.range_coding import (
    MOST_WEIGHT,
    TOTAL,
    RangeReader,
    RangeWriter,
    bits_of,
    frequencies,
    of_levels,
    to_levels,
)
from fsl.errors import ConfigError, WireError


def weights():
    rng = np.random.default_rng(0)
    return {
        "counts": rng.integers(0, 1000, 102),
        "skewed": (rng.dirichlet(np.full(102, 0.05)) * 1e9).astype(np.int64),
        "zero": np.zeros(7, dtype=np.int64),
        "one symbol": np.array([5]),
        "the largest": np.full(256, MOST_WEIGHT),
        "one of many": np.eye(256, dtype=np.int64)[3] * MOST_WEIGHT,
    }


def skewed_table():
    return frequencies(weights()["skewed"])


@pytest.mark.parametrize("name", weights())
def test_a_table_adds_up_has_no_zero_and_keeps_the_order_of_the_weights(name):
    given = weights()[name]
    table = frequencies(given)
    assert table.sum() == TOTAL
    assert table.min() >= 1
    assert (np.diff(table[np.argsort(given, kind="stable")]) >= 0).all() or not given.any()


@pytest.mark.parametrize("name", weights())
def test_a_table_is_what_unbounded_whole_numbers_give(name):
    given = [int(weight) for weight in weights()[name]]
    room = TOTAL - len(given)
    exact = [1 + weight * room // max(sum(given), 1) for weight in given]
    exact[given.index(max(given))] += TOTAL - sum(exact)
    assert frequencies(weights()[name]).tolist() == exact


def test_the_library_divides_its_range_by_the_whole_numbers_of_the_table():
    table = frequencies(weights()["counts"])
    below = np.concatenate([[0], np.cumsum(table)[:-1]])
    spread = (1 << 24) - len(table)
    for k in range(1, len(table)):
        edge = (int(below[k]) * spread // TOTAL + k) * ((1 << 40) - 1)  # of 2^64 - 1, the coder's range at first
        for point, symbol in ((edge - 1, k - 1), (edge, k)):
            words = np.array([point >> 32, point & 0xFFFFFFFF], "<u4").tobytes()
            assert RangeReader(words).read(1, table) == [symbol]


def test_the_library_takes_the_table_as_it_is_after_many_symbols():
    table, rng = skewed_table(), np.random.default_rng(1)
    symbols = rng.choice(len(table), 200_000, p=table / TOTAL).astype(np.int32)
    writer = RangeWriter()
    writer.write(symbols, table)
    ideal = float(bits_of(np.bincount(symbols, minlength=len(table)), table))
    assert 0 < 8 * len(writer.words()) - ideal < 100  # 64 bits at the end, and the coder's own rounding


def test_what_is_written_is_read():
    table, rng = skewed_table(), np.random.default_rng(2)
    symbols = rng.integers(0, len(table), 1000).astype(np.int32)
    limits = (1 << rng.integers(5, 24, 300)).astype(np.int32)
    numbers = (limits * rng.random(300)).astype(np.int32)
    writer = RangeWriter()
    writer.write(symbols, table)
    writer.write_below(numbers, limits)
    writer.write(np.zeros(9, dtype=np.int32), np.array([TOTAL]))
    writer.write(symbols[::-1].copy(), table)
    reader = RangeReader(writer.words())
    assert (reader.read(1000, table) == symbols).all()
    assert (reader.read_below(limits) == numbers).all()
    assert reader.read(9, np.array([TOTAL])).tolist() == [0] * 9
    assert (reader.read(1000, table) == symbols[::-1]).all()
    reader.close()


def test_a_table_of_one_symbol_takes_no_bytes():
    writer = RangeWriter()
    writer.write(np.zeros(1000, dtype=np.int32), np.array([TOTAL]))
    assert writer.words() == b""


def test_words_that_are_left_over_are_refused():
    table = skewed_table()
    writer = RangeWriter()
    writer.write(np.arange(50, dtype=np.int32), table)
    reader = RangeReader(writer.words() + b"\1\2\3\4" * 3)
    reader.read(50, table)
    with pytest.raises(WireError, match="go on behind the last symbol"):
        reader.close()


def test_half_a_word_is_refused():
    with pytest.raises(WireError, match="4 bytes each, and 5 bytes came"):
        RangeReader(b"12345")


def test_a_panic_of_the_library_is_a_wire_error():
    class PanicError(BaseException):
        pass

    class Broken:
        def decode(self, model, what):
            raise PanicError

    reader = RangeReader(b"")
    reader._decoder = Broken()
    with pytest.raises(WireError, match="stand for nothing"):
        reader.read(3, skewed_table())


def test_without_the_library_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ConfigError, match=r"constriction is not installed; pip install 'fsl-flower\[codecs\]'"):
        RangeWriter()


def test_a_bytes_weight_is_within_an_eighth_of_the_counts_share():
    counts = np.array([1, 2, 3, 7, 50, 999, 12_345, 30_000])
    shares = of_levels(to_levels(counts)) / of_levels(to_levels(counts)).max()
    assert np.abs(shares / (counts / counts.max()) - 1).max() < 1 / 8


def test_a_byte_that_stands_for_no_weight_is_refused():
    with pytest.raises(WireError, match="has the byte 128; 127 is the largest"):
        of_levels(np.array([0, 128], dtype=np.uint8))


EDGES = [0, 1, 31, 32, 33, 63, 64, 1000, LARGEST - 1, LARGEST]
CODES = np.array(
    sorted({sign * edge + more for edge in EDGES for sign in (-1, 1) for more in (-1, 0)} - {-LARGEST - 2})
)


def test_whole_numbers_are_restored_from_symbol_and_offset():
    codes = CODES.astype(np.int32)
    symbols, offsets = symbols_of(codes)
    assert codes_of(symbols, offsets).tolist() == codes.tolist()
    assert symbols.min() == 0
    assert symbols.max() == SYMBOLS - 1
    assert (np.diff(symbols) >= 0).all()
    assert (offsets >= 0).all()
    assert (offsets < octaves_of(symbols)).all()


def test_numbers_near_zero_have_symbols_of_their_own():
    symbols, offsets = symbols_of(np.arange(-32, 32, dtype=np.int32))
    assert len(set(symbols.tolist())) == 64
    assert not len(offsets)
