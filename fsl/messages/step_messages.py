"""Uploads and replies on a session's lean stream: a fixed head and the tensors' bytes, described once.

A frame of fsl's protocol describes its tensors each time. Most steps of a session have tensors of the same names,
dtypes and shapes; so a lean stream carries one whole frame of each description, both ends number it, and later steps
bring its number. What the tensors are is known before their bytes come, so they are received where they stay.
"""

import struct
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fsl.codecs.codec import Payload
from fsl.errors import WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import (
    Arrived,
    checked_tensor,
    read_telling_reply,
    read_upload,
    reply_bytes,
    reply_frame,
    tensor_bytes,
    upload_bytes,
    upload_frame,
)

HEAD = struct.Struct("<BxxxIQQ")  # kind, number of the description, step (a frame's size), mark
FRAME, KEPT, STEP = range(3)  # a whole frame; one whose description both ends keep; a step by a kept description
MAX_KEPT = 64  # descriptions of one stream and direction; what has another travels in whole frames
MAX_DESCRIPTION = 64 << 10  # bytes; what takes more travels in whole frames
_SMALL = 32 << 10  # bytes up to which a message is put together, so that it leaves by one call
Part = bytes | memoryview
Spec = tuple[str, torch.dtype, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMessage:
    """An upload, or a reply to one, before it is made bytes of.

    Nobody may change its tensors any more: they are read when it leaves, and again where a connection broke. `mark`:
    of an upload, 1 + the edge that the device moves to (0: it stays); of a reply, the uploads that are served.
    """

    kind: Literal["upload", "reply"]
    device: int
    round: int
    step: int
    mark: int
    payload: Payload
    targets: Tensor | None = None  # of an upload
    factors: Tensor | None = None  # of an upload
    norms: Tensor | None = None  # of a reply
    told: Tensor | None = None  # of a reply of a server above an edge

    @property
    def size(self) -> int:
        """Returns the bytes of its frame."""
        if self.kind == "upload":
            return upload_bytes(self.payload, self.targets, self.factors)
        return reply_bytes(self.payload, self.norms, told=self.told)

    def frame(self) -> bytes:
        """Returns it as a frame of its own."""
        if self.kind == "upload":
            to = self.mark - 1 if self.mark else None
            return upload_frame(self.device, self.round, self.step, self.payload, self.targets, to, self.factors)
        return reply_frame(self.device, self.round, self.step, self.payload, self.mark, self.norms, self.told)

    def tensors(self) -> list[Tensor]:
        """Returns its tensors, in the order of its frame."""
        beside = (self.targets, self.factors, self.norms, self.told)
        return [*(tensor for _, tensor in self.payload.arrays), *(tensor for tensor in beside if tensor is not None)]

    def signature(self) -> Hashable:
        """Returns what a description depends on: codec, structure, names, dtypes, shapes."""
        singles = (self.targets, self.factors, self.norms, self.told)
        beside = tuple(None if t is None else (t.dtype, t.shape) for t in singles)
        tensors = tuple((n, t.dtype, t.shape) for n, t in self.payload.arrays)
        return self.payload.codec, self.payload.structure, tensors, beside


Outgoing = bytes | StepMessage  # a frame, or what is one where no lean stream carries it


def as_frame(message: Outgoing) -> bytes:
    """Returns a message as a frame."""
    return message if isinstance(message, bytes) else message.frame()


class Descriptions:
    """The descriptions that one end of a stream has sent: makes the parts in which messages leave."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def parts(self, message: Outgoing) -> list[Part]:
        """Returns the bytes of a message, in parts that are sent one after another."""
        if isinstance(message, bytes):
            return _together([HEAD.pack(FRAME, 0, len(message), 0), message], len(message))
        number = self._known.get(signature := message.signature())
        if number is not None:
            views = [tensor_bytes(tensor) for tensor in message.tensors()]
            head = HEAD.pack(STEP, number, message.step, message.mark)
            return _together([head, *views], sum(map(len, views)))
        frame, kind = message.frame(), FRAME
        tensors = sum(tensor.nbytes for tensor in message.tensors())
        if len(self._known) < MAX_KEPT and len(frame) - tensors <= MAX_DESCRIPTION:
            self._known[signature] = len(self._known)
            kind = KEPT
        return _together([HEAD.pack(kind, 0, len(frame), 0), frame], len(frame))


def _together(parts: list[Part], size: int) -> list[Part]:
    return [b"".join(parts)] if size <= _SMALL else parts


@dataclass(frozen=True, slots=True)
class Description:
    """What one kind of step consists of, as the other end described it."""

    upload: bool  # or else a reply
    device: int
    round: int
    codec: str
    structure: str
    tensors: tuple[Spec, ...]  # of the payload
    beside: tuple[Spec, ...]  # named by the message's fields
    size: int  # bytes of its frame

    @staticmethod
    def of(message: pb.Upload | pb.Reply, data: memoryview, size: int) -> "Description":
        """Read the description in a message with its data behind it; WireError for what cannot be.

        Nothing else of the message is kept.
        """
        if size - len(data) > MAX_DESCRIPTION:
            raise WireError(f"a description has {size - len(data)} bytes; at most {MAX_DESCRIPTION} are kept")
        _ = read_upload(message, data) if isinstance(message, pb.Upload) else read_telling_reply(message, data)
        payload = message.smashed if isinstance(message, pb.Upload) else message.gradient
        fields = ("targets", "factors") if isinstance(message, pb.Upload) else ("norms", "told")
        beside = [(field, getattr(message, field).tensors[0]) for field in fields if message.HasField(field)]
        return Description(
            isinstance(message, pb.Upload),
            message.device,
            message.round,
            payload.codec,
            payload.structure,
            tuple((tensor.name, *checked_tensor(tensor)) for tensor in payload.tensors),
            tuple((field, *checked_tensor(tensor)) for field, tensor in beside),
            size,
        )

    def blank(self) -> tuple[Arrived, list[memoryview]]:
        """Returns tensors for one step, and the memory into which their bytes go, one after another."""
        tensors = [(name, torch.empty(shape, dtype=dtype)) for name, dtype, shape in self.tensors]
        beside = {name: torch.empty(shape, dtype=dtype) for name, dtype, shape in self.beside}
        views = [tensor_bytes(tensor) for tensor in (*(t for _, t in tensors), *beside.values())]
        return Arrived(Payload(self.codec, tuple(tensors), self.structure), beside), [
            view for view in views if len(view)
        ]

    def named(self, step: int, mark: int) -> "pb.ToEdge | pb.ToDevice":
        """Returns the message of one step, without a description. WireError for numbers that no message carries."""
        if step >> 32 or mark >> 32:
            raise WireError(f"a step is numbered {step}, its mark is {mark}")
        if self.upload:
            return pb.ToEdge(upload=pb.Upload(device=self.device, round=self.round, step=step, leaving=mark))
        return pb.ToDevice(reply=pb.Reply(device=self.device, round=self.round, step=step, served=mark))
