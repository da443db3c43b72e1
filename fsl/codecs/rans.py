"""Packs bytes by how often each of them comes, without loss (rANS)."""

from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fsl.codecs.entropy_coders import entropy_coders
from fsl.codecs.lossless import Bytes, Lossless

_TOTAL = (1 << 16) - 1  # of a table: 256 times that, and one for each of 256 bytes, is the library's 2^24
_CHUNK = 1 << 16  # bytes that are coded at once: the library takes and gives four times as many
_MARKS = 32  # bytes of a table's mask


class Rans(Lossless):
    """Asymmetric numeral systems over an array's bytes, each byte with one fixed frequency. Error: none, of any dtype.

    A table for each significance of bytes (four of float32) travels in front: 32 bytes that mark which byte values
    come, and 2 for each that does. Behind them come about as many bits as the bytes' entropy, and a few bytes. Tables
    are whole numbers that add up to 2^16 - 1, which the library scales without rounding, so that each machine has the
    same ones. Needs `pip install 'fsl-flower[codecs]'`.

    Duda 2013, "Asymmetric numeral systems" (arXiv 1311.2540); coded by the library constriction.
    """

    name: ClassVar[str] = "rans"

    def __init__(self) -> None:
        _library()

    def compress(self, planes: Bytes) -> bytes:
        """Returns the tables of all planes (W, n), and the words of one coder."""
        if not planes.size:
            return b""
        coder = _library().stream.stack.AnsCoder()
        tables = [_table(plane) for plane in planes]
        for plane, table in reversed(list(zip(planes, tables))):  # what is put on the stack last comes first
            model = _model(table)
            for start in reversed(range(0, plane.size, _CHUNK)):
                coder.encode_reverse(plane[start : start + _CHUNK].astype(np.int32), model)
        return b"".join(map(_written, tables)) + coder.get_compressed().astype("<u4").tobytes()

    def expand(self, packed: Bytes, planes: Bytes) -> None:
        """Fill planes; ValueError for tables or words that `compress` does not make."""
        tables = []
        for _ in planes:
            table, packed = _read(packed)
            tables.append(table)
        if packed.size % 4:
            raise ValueError(f"{packed.size} bytes behind the tables, where words have 4 each")
        coder = _library().stream.stack.AnsCoder(np.frombuffer(packed.tobytes(), "<u4").astype(np.uint32))
        for plane, table in zip(planes, tables):
            model = _model(table)
            for start in range(0, plane.size, _CHUNK):
                some = plane[start : start + _CHUNK]
                some[:] = coder.decode(model, some.size)
        if not coder.is_empty():
            raise ValueError("words are left behind the last byte")


def _table(plane: Bytes) -> NDArray[np.int64]:
    """Returns the frequency (256,) of each byte value, 1 or more where it comes; together 2^16 - 1."""
    counts = np.bincount(plane, minlength=256)
    come = counts > 0
    table = np.where(come, 1 + counts * (_TOTAL - come.sum()) // plane.size, 0)
    table[counts.argmax()] += _TOTAL - table.sum()  # what rounding left over
    return table


def _written(table: NDArray[np.int64]) -> bytes:
    return np.packbits(table > 0).tobytes() + table[table > 0].astype("<u2").tobytes()


def _read(packed: Bytes) -> tuple[NDArray[np.int64], Bytes]:
    """Returns a table, and what is behind it."""
    if packed.size < _MARKS:
        raise ValueError("a table of frequencies is cut off")
    come = np.unpackbits(packed[:_MARKS]).astype(bool)
    end = _MARKS + 2 * int(come.sum())
    table = np.zeros(256, dtype=np.int64)
    frequencies = np.frombuffer(packed[_MARKS:end].tobytes(), "<u2") if packed.size >= end else np.zeros(0)
    if frequencies.sum() != _TOTAL or not frequencies.all():
        raise ValueError(f"a table's frequencies add up to {int(frequencies.sum())}, not to {_TOTAL}")
    table[come] = frequencies
    return table, packed[end:]


def _model(table: NDArray[np.int64]) -> Any:
    return _library().stream.model.Categorical(table.astype(np.float64), perfect=False)


def _library() -> ModuleType:
    return entropy_coders("rans")
