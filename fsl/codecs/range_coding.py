"""Integer tables of frequencies, and a range coder that writes symbols under them.

Both ends make a table from the same whole numbers by whole-number arithmetic, so that two machines have the same one.
The coder's library takes tables as doubles, spreads them over 2^24 - K and adds 1 to each frequency: a double holds
each number of that exactly.
"""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsl.codecs.entropy_coders import entropy_coders
from fsl.errors import WireError

Ints = NDArray[np.int64]
Symbols = NDArray[np.int32]

TOTAL = 1 << 16  # what a table's frequencies add up to
_LEVELS = np.array([(8 + q % 8) << (q // 8) for q in range(128)], dtype=np.int64)  # weights that a byte stands for
MOST_WEIGHT = 1 << 40  # the largest whose arithmetic stays within 64 bits


def frequencies(weights: Ints) -> Ints:
    """Returns a table (..., K) from weights (..., K), whole numbers from 0 to 2^40, K up to 256.

    Frequencies are 1 or more, add up to `TOTAL`, and are in the order of the weights; the largest takes what rounding
    leaves over.
    """
    room = TOTAL - weights.shape[-1]
    table = 1 + weights * room // np.maximum(weights.sum(-1, keepdims=True), 1)
    largest = np.expand_dims(weights.argmax(-1), -1)
    left = TOTAL - table.sum(-1, keepdims=True)
    np.put_along_axis(table, largest, np.take_along_axis(table, largest, -1) + left, -1)
    return table


def to_levels(counts: Ints) -> NDArray[np.uint8]:
    """Returns counts (K,), at least one of them above 0, as one byte each: a weight within 1/8 of the count's share."""
    scaled = counts * _LEVELS[-1] // counts.max()
    return (np.searchsorted(_LEVELS, scaled, side="right") - 1).clip(0).astype(np.uint8)


def of_levels(levels: NDArray[np.uint8]) -> Ints:
    """Returns the weights that bytes stand for; WireError for a byte that none has."""
    if levels.size and levels.max() >= len(_LEVELS):
        raise WireError(f"a table of frequencies has the byte {levels.max()}; {len(_LEVELS) - 1} is the largest")
    return _LEVELS[levels]


def bits_of(counts: Ints, table: Ints) -> NDArray[np.float64]:
    """Returns the bits that symbols counted by `counts` (..., K) take under tables (..., K)."""
    bits: NDArray[np.float64] = (counts * (np.log2(TOTAL) - np.log2(table))).sum(-1)
    return bits


class RangeWriter:
    """Writes symbols as the words of one range coder.

    They take their cross-entropy under the tables, about a seven-thousandth of a bit a symbol, and one or two words of
    32 bits.
    """

    def __init__(self) -> None:
        self._models = _constriction().stream.model
        self._encoder = _constriction().stream.queue.RangeEncoder()

    def write(self, symbols: Symbols, table: Ints) -> None:
        """Write symbols (N,) under a table (K,); a table of one symbol takes no bits."""
        if len(symbols) and len(table) > 1:
            self._encoder.encode(symbols, self._models.Categorical(table.astype(np.float64), perfect=False))

    def write_below(self, numbers: Symbols, limits: Symbols) -> None:
        """Write numbers (N,), each of any value from 0 to its limit - 1 alike."""
        if len(numbers):
            self._encoder.encode(numbers, self._models.Uniform(), limits)

    def words(self) -> bytes:
        """Returns what was written."""
        data: bytes = self._encoder.get_compressed().astype("<u4").tobytes()
        return data


class RangeReader:
    """Reads what `RangeWriter` wrote, in the same order.

    WireError for words that nobody writes. Not all changed words are noticed: some stand for other symbols.
    """

    def __init__(self, words: bytes) -> None:
        if len(words) % 4:
            raise WireError(f"a range coder's words have 4 bytes each, and {len(words)} bytes came")
        self._models = _constriction().stream.model
        decoder = _constriction().stream.queue.RangeDecoder
        self._decoder = decoder(np.frombuffer(words, "<u4").astype(np.uint32))

    def read(self, number: int, table: Ints) -> Symbols:
        """Returns so many symbols, each from 0 to K - 1, under a table (K,)."""
        if not number or len(table) == 1:
            return np.zeros(number, dtype=np.int32)
        return self._read(self._models.Categorical(table.astype(np.float64), perfect=False), number)

    def read_below(self, limits: Symbols) -> Symbols:
        """Returns a number from 0 to its limit - 1 for each of these limits (N,)."""
        return self._read(self._models.Uniform(), limits) if len(limits) else limits

    def close(self) -> None:
        """WireError where words are left over."""
        if not self._decoder.maybe_exhausted():
            raise WireError("a range coder's words go on behind the last symbol")

    def _read(self, model: Any, what: Any) -> Symbols:
        try:
            symbols: Symbols = self._decoder.decode(model, what)
        except BaseException as error:
            # The library's own failures may be panics, which Python sees as no Exception.
            if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
                raise
            raise WireError("the words of a range coder stand for nothing under its tables") from None
        return symbols


def _constriction() -> ModuleType:
    return entropy_coders("entropic")
