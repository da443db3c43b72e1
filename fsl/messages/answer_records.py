"""Writes the records of a whole batch's answers: what is alike in all of them once, and each one's numbers between.

An edge writes one for every question, and protobuf takes longer for that than a small model for its row. What comes
out is what protobuf would write, but that numbers which are zero are there, too.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fsl.codecs.codec import Payload
from fsl.messages.frames import describe, tensor_bytes

_LENGTHS = struct.Struct("<II")
# Tags and values of Answered's first four fields: id, queue_seconds, compute_seconds, batch_rows.
_NUMBERS = struct.Struct("<BQBdBdBI")
_TAGS = (0x09, 0x11, 0x19, 0x25)
_ANSWERED, _OUTPUTS = 0x12, 0x2A  # tags: FromServing.answered, Answered.outputs


@dataclass(frozen=True, slots=True)
class AnswerOf:
    """Whose answer a part of a batch's outputs is: a question's id, its rows, and the seconds that it waited."""

    id: int
    rows: int
    queue_seconds: float


def answered_records(
    answers: Sequence[AnswerOf], outputs: Tensor, compute_seconds: float, batch_rows: int
) -> Iterator[bytes]:
    """Yields a record for each answer, whose rows lie in `outputs` (rows, ...) one after another."""
    data, start = tensor_bytes(outputs), 0
    each = len(data) // max(1, len(outputs))
    for one in answers:
        size = one.rows * each
        before, behind = _around(torch.Size([one.rows, *outputs.shape[1:]]), outputs.dtype)
        numbers = _NUMBERS.pack(
            *(_TAGS[0], one.id, _TAGS[1], one.queue_seconds),
            *(_TAGS[2], compute_seconds, _TAGS[3], batch_rows),
        )
        yield b"".join((before, numbers, behind, data[start : start + size]))
        start += size


@lru_cache(maxsize=1024)
def _around(shape: torch.Size, dtype: torch.dtype) -> tuple[bytes, bytes]:
    """Returns what stands before and behind the numbers of an answer with outputs of this shape."""
    outputs = describe(Payload("identity", (("values", torch.empty(shape, dtype=dtype)),))).SerializeToString()
    behind = bytes([_OUTPUTS]) + _varint(len(outputs)) + outputs
    inner = _NUMBERS.size + len(behind)
    opening = bytes([_ANSWERED]) + _varint(inner)
    return _LENGTHS.pack(len(opening) + inner, shape.numel() * dtype.itemsize) + opening, behind


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
