"""The head of a frame: a protobuf message behind its length, and whatever follows. It needs no torch."""

from typing import TypeVar

from google.protobuf.message import DecodeError

from fsl.errors import WireError
from fsl.messages import messages_pb2 as pb

_LENGTH = 4  # bytes before the message that tell its length
Sent = pb.ToEdge | pb.ToDevice | pb.ToNode | pb.ToCloud
Message = TypeVar("Message", pb.ToEdge, pb.ToDevice, pb.ToNode, pb.ToCloud)


def headed(message: Sent, *rest: bytes | memoryview) -> bytes:
    """Returns a message as a frame, with these bytes behind it."""
    head = message.SerializeToString()
    return b"".join([len(head).to_bytes(_LENGTH, "little"), head, *rest])


def read_frame(data: bytes, kind: type[Message]) -> tuple[Message, memoryview]:
    """Returns the message in a frame and the bytes behind it; WireError for what is no frame."""
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or end > len(data):
        raise WireError(f"a frame of {len(data)} bytes is cut short")
    try:
        return kind.FromString(data[_LENGTH:end]), memoryview(data)[end:]
    except DecodeError:
        raise WireError("a frame does not begin with a message of fsl's protocol") from None
