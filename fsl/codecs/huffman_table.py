"""A canonical Huffman code of bytes by stored frequencies, with an escape for bytes that these never saw."""

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fsl.errors import WireError

Bytes = npt.NDArray[np.uint8]

ESCAPE = 256  # the symbol in front of a byte that has none of its own
BLOCK = 1 << 14  # bytes that are decoded at a time
_LONGEST = 15  # bits of a code
_WINDOW = _LONGEST + 8  # bits of an escape and the byte behind it


class HuffmanTable:
    """The code that frequencies of the bytes 0, 1, ... make, the same on every machine.

    A byte without a frequency costs the escape's code and 8 bits. No code is longer than 15 bits: frequencies are
    halved until that holds.
    """

    def __init__(self, frequencies: Sequence[int]) -> None:
        weights = {byte: int(count) for byte, count in enumerate(frequencies) if count} | {ESCAPE: 1}
        lengths = _code_lengths(weights)
        order = np.array(sorted(lengths, key=lambda symbol: (lengths[symbol], symbol)))
        self.lengths = lengths
        sizes = np.array([lengths[int(symbol)] for symbol in order])
        spans = 1 << (_LONGEST - sizes)  # of a canonical code: how many windows begin with it
        codes = dict(zip(order.tolist(), (np.cumsum(spans) - spans) >> (_LONGEST - sizes)))
        own = np.array([byte in codes for byte in range(256)])
        every = [int(codes[b]) if own[b] else int(codes[ESCAPE]) << 8 | b for b in range(256)]
        self._codes = np.array(every, dtype=np.int32)
        self._sizes = np.array([lengths.get(byte, lengths[ESCAPE] + 8) for byte in range(256)], dtype=np.int32)
        self._symbol_at = np.repeat(order, spans).astype(np.int32)
        self._size_at = np.repeat(sizes, spans).astype(np.int32)

    def encode(self, data: Bytes) -> Bytes:
        """Returns the codes of bytes (N,), in blocks; in front the sizes of all blocks but the last."""
        blocks = [self._encoded(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
        sizes = np.array([len(block) for block in blocks[:-1]], dtype="<u4")
        return np.concatenate([sizes.view(np.uint8), *blocks])

    def decode(self, coded: Bytes, count: int) -> Bytes:
        """Returns so many bytes; WireError where they are not what `coded` stands for."""
        blocks = -(-count // BLOCK)
        head = 4 * max(0, blocks - 1)
        if 8 * len(coded) < count or len(coded) < head:
            raise WireError(f"codec 'huffman' got {len(coded)} bytes for {count} symbols")
        ends = head + np.cumsum(coded[:head].view("<u4").astype(np.int64))
        found, start = [np.empty(0, np.uint8)], head
        for number, end in enumerate([*ends.tolist(), len(coded)][:blocks]):
            if end > len(coded):
                raise WireError(f"codec 'huffman' got a block that ends at byte {end} of {len(coded)}")
            found.append(self._decoded(coded[start:end], min(BLOCK, count - number * BLOCK)))
            start = end
        if start != len(coded):
            raise WireError(f"codec 'huffman' got {len(coded)} bytes for no symbols")
        return np.concatenate(found)

    def _encoded(self, data: Bytes) -> Bytes:
        sizes, codes = self._sizes[data], self._codes[data]
        starts = np.cumsum(sizes) - sizes
        bits = np.zeros(int(sizes.sum()), dtype=np.uint8)
        for place in range(int(sizes.max())):  # of each code its next bit
            longer = sizes > place
            bits[starts[longer] + place] = codes[longer] >> (sizes[longer] - 1 - place) & 1
        return np.packbits(bits)

    def _decoded(self, coded: Bytes, count: int) -> Bytes:
        """Reads a symbol at every bit, then goes from each symbol to the next: at first one, then two, four, ..."""
        total = 8 * len(coded)
        if not count <= total <= _WINDOW * count + 7:
            raise WireError(f"codec 'huffman' got {len(coded)} bytes for a block of {count} symbols")
        wide = np.concatenate([coded, np.zeros(4, np.uint8)]).astype(np.int64)
        words = wide[:-4] << 24 | wide[1:-3] << 16 | wide[2:-2] << 8 | wide[3:-1]
        places = np.arange(total)
        windows = words[places >> 3] >> (32 - _WINDOW - (places & 7)) & ((1 << _WINDOW) - 1)
        symbols, sizes = self._symbol_at[windows >> 8], self._size_at[windows >> 8]
        escaped = symbols == ESCAPE
        symbols = np.where(escaped, windows >> (_LONGEST - sizes) & 255, symbols)
        beyond = total + 1
        following = places + sizes + 8 * escaped
        following = np.append(np.where(following > total, beyond, following), [beyond, beyond])
        jump, at = following, np.zeros(1, dtype=np.int64)
        while len(at) < count:
            at = np.concatenate([at, jump[at]])
            jump = jump[jump]
        at = at[:count]
        end = int(following[at[-1]])
        if end == beyond or total - end > 7:
            raise WireError(f"codec 'huffman' got {len(coded)} bytes, which are no {count} symbols")
        return symbols[at].astype(np.uint8)


def _code_lengths(weights: dict[int, int]) -> dict[int, int]:
    """Returns how many bits the code of each symbol has, by Huffman's rule; equal weights in the order of symbols."""
    while True:
        heap: list[tuple[int, int, tuple[int, ...]]] = [
            (weight, symbol, (symbol,)) for symbol, weight in sorted(weights.items())
        ]
        lengths = dict.fromkeys(weights, 0)
        heapq.heapify(heap)
        while len(heap) > 1:
            (light, one, left), (heavy, other, right) = heapq.heappop(heap), heapq.heappop(heap)
            for symbol in left + right:
                lengths[symbol] += 1
            heapq.heappush(heap, (light + heavy, min(one, other), left + right))
        if max(lengths.values()) <= _LONGEST:
            return lengths
        weights = {symbol: (weight + 1) // 2 for symbol, weight in weights.items()}
