"""Records of split inference: protobuf messages with raw tensor bytes behind them, as many in a row as there are.

Devices that share a network send such records, too. Nothing is unpickled. dtype, shape and size are checked here, the
rest by whoever knows what crosses at a point.
"""

import struct
from collections.abc import Iterator
from typing import TypeVar

from google.protobuf.message import DecodeError

from fsl.codecs.codec import Payload
from fsl.errors import WireError
from fsl.messages import inference_pb2 as pb
from fsl.messages import separable_pb2
from fsl.messages.frames import describe, read_payload, tensor_bytes

_LENGTHS = struct.Struct("<II")  # of the message, and of the bytes behind it
Message = TypeVar("Message", pb.ToServing, pb.FromServing, separable_pb2.ToGroup)


def record(message: pb.ToServing | pb.FromServing | separable_pb2.ToGroup, payload: Payload | None = None) -> bytes:
    """Returns a message with its payload's tensors behind it."""
    head = message.SerializeToString()
    parts = [] if payload is None else [tensor_bytes(tensor) for _, tensor in payload.arrays]
    return b"".join([_LENGTHS.pack(len(head), sum(map(len, parts))), head, *parts])


def records(data: bytes | memoryview, kind: type[Message]) -> Iterator[tuple[Message, memoryview, int]]:
    """Yields each message of what came, the bytes behind it, and how many bytes the record has.

    WireError for what is no record, and for no record at all.
    """
    view, place = memoryview(data), 0
    while not place or place < len(data):
        begin = place + _LENGTHS.size
        if begin > len(data):
            raise WireError(f"a record of {len(data) - place} bytes is cut short")
        head, rest = _LENGTHS.unpack_from(view, place)
        middle, place = begin + head, begin + head + rest
        if place > len(data):
            raise WireError(f"a record of {len(data) - begin} bytes claims {head + rest}")
        try:
            yield kind.FromString(bytes(view[begin:middle])), view[middle:place], _LENGTHS.size + head + rest
        except DecodeError:
            raise WireError("a record does not begin with a message of fsl's protocol") from None


def record_size(data: memoryview) -> int | None:
    """Returns how many bytes the record has that data begin with; None where too few are there to tell."""
    if len(data) < _LENGTHS.size:
        return None
    head, rest = _LENGTHS.unpack_from(data)
    return _LENGTHS.size + int(head) + int(rest)


def question_record(*, id: int, point: int, codec: int, rows: int, seconds: float, values: Payload) -> bytes:
    """A question with what crosses; WireError for what the wire does not carry."""
    said = pb.Question(id=id, point=point, codec=codec, rows=rows, seconds=seconds, values=describe(values))
    return record(pb.ToServing(question=said), values)


def unanswered_record(
    *, id: int, failing: pb.Failing, reason: str, queue_seconds: float = 0.0, retry_seconds: float = 0.0
) -> bytes:
    """Says why a question has no answer."""
    said = pb.Unanswered(
        id=id, failing=failing, reason=reason, queue_seconds=queue_seconds, retry_seconds=retry_seconds
    )
    return record(pb.FromServing(unanswered=said))


def whole_payload(message: pb.Question | pb.Answered, data: memoryview) -> Payload:
    """Returns the payload of a question or an answer; WireError for what cannot be, and for bytes behind it."""
    described = message.values if isinstance(message, pb.Question) else message.outputs
    payload, rest = read_payload(described, data)
    if rest:
        raise WireError(f"a record has {len(rest)} bytes behind the tensors that it names")
    return payload
