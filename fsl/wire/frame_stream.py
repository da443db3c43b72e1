"""Cuts frames into messages of at most CHUNK bytes, and puts them together again up to a limit.

A message of CHUNK bytes says that more of its frame follows, a shorter one ends it (as packets end a transfer in USB).
So a small frame is one message and nothing else, and the reader believes no length: it takes memory for what has come.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import grpc

CHUNK = 256 << 10  # bytes of a message, at most; gRPC refuses a larger one when it has read its length


class Writes(Protocol):
    """A stream that messages are written to."""

    async def write(self, message: bytes, /) -> None:
        """Send one message."""


class Reads(Protocol):
    """A stream that messages are read from."""

    async def read(self) -> Any:
        """The next message; grpc.aio.EOF where there is none."""


class TooLarge(Exception):  # noqa: N818 - an answer, not a fault of ours
    """A frame is larger than the reader accepts."""

    def __init__(self, most: int):
        super().__init__(f"a frame is above the {most} bytes that may come here")


def cut(frame: bytes) -> Iterator[bytes]:
    """Yields the messages of a frame."""
    if len(frame) < CHUNK:
        yield frame
        return
    for start in range(0, len(frame) + 1, CHUNK):  # where the last one is full, an empty one ends the frame
        yield frame[start : start + CHUNK]


async def send(stream: Writes, frame: bytes) -> None:
    """Write a frame, message by message."""
    for message in cut(frame):
        await stream.write(message)


async def receive(stream: Reads, most: int) -> bytes | None:
    """Read the next frame, of at most `most` bytes; None at the stream's end. TooLarge as soon as it is larger."""
    message = await stream.read()
    return None if message is grpc.aio.EOF else await receive_rest(stream, message, most)


async def receive_rest(stream: Reads, first: bytes, most: int) -> bytes | None:
    """Read the rest of a frame of which `first` is the first message; otherwise as `receive`."""
    message, parts, size = first, [first], len(first)
    while size <= most and len(message) == CHUNK:
        message = await stream.read()
        if message is grpc.aio.EOF:
            return None
        parts.append(message)
        size += len(message)
    if size > most:
        raise TooLarge(most)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def skip_rest(stream: Reads, first: bytes) -> None:
    """Read the rest of a frame, however long, and keep nothing of it."""
    message: Any = first
    while message is not grpc.aio.EOF and len(message) == CHUNK:
        message = await stream.read()


async def next_message(call: Any) -> bytes:
    """Read a call's next message; raises AioRpcError with the call's status where none comes."""
    data = await call.read()
    if data is grpc.aio.EOF:
        raise await ended(call)
    assert isinstance(data, bytes)
    return data


async def ended(call: Any) -> grpc.aio.AioRpcError:
    """Returns the error that ended a call too early, from the call's status; OK counts as an error here."""
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        code, details = grpc.StatusCode.UNAVAILABLE, "the edge ended the stream"
    return grpc.aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata(), details)
