"""Frames: protobuf messages with raw tensor bytes behind them; checked on the way in, weighed without being written.

Nothing is unpickled. dtype, shape and size are checked before anything reaches a trainer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsl.codecs.codec import Payload, tells_alone
from fsl.errors import WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.heads import Sent, headed

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
MAX_ELEMENTS = 1 << 28  # of one tensor; a gigabyte of float32
MAX_DIMENSIONS = 16
MAX_TENSORS = 64  # of one payload
_LENGTH = 4  # bytes before the message that tell its length

_ANY = 1


@dataclass(frozen=True, slots=True)
class Arrived:
    """A step's tensors that were received where they stay: its payload, and what came beside it, by field."""

    payload: Payload
    beside: Mapping[str, Tensor]

    def check(self) -> None:
        """Raise WireError for a tensor of truth values that holds other bytes than 0 and 1."""
        for name, tensor in (*self.payload.arrays, *self.beside.items()):
            if tensor.dtype is torch.bool:
                _check_bool(f"tensor {name[:40]!r}", np.frombuffer(tensor_bytes(tensor), np.uint8))


Signature = tuple[tuple[str, torch.dtype, torch.Size], ...]


def frame(message: Sent, *payloads: Payload | None) -> bytes:
    """A message with its payloads' tensors behind it, in the order in which the message names them."""
    tensors = [tensor for payload in payloads if payload is not None for _, tensor in payload.arrays]
    return headed(message, *map(tensor_bytes, tensors))


def upload_frame(
    device: int,
    round: int,
    step: int,
    smashed: Payload,
    targets: Tensor | None,
    leaving: int | None = None,
    factors: Tensor | None = None,
) -> bytes:
    """One step's upload; `targets` is None where labels stay on the device. `leaving`: the edge that it moves to."""
    labels, counts = single("targets", targets), single("factors", factors)
    upload = pb.Upload(
        device=device,
        round=round,
        step=step,
        smashed=describe(smashed),
        targets=None if labels is None else describe(labels),
        leaving=0 if leaving is None else leaving + 1,
        factors=None if counts is None else describe(counts),
    )
    return frame(pb.ToEdge(upload=upload), smashed, labels, counts)


def reply_frame(
    device: int,
    round: int,
    step: int,
    gradient: Payload,
    served: int,
    norms: Tensor | None = None,
    told: Tensor | None = None,
) -> bytes:
    """One step's reply; `served` uploads are done with, 0 where more replies of the same step follow."""
    lengths, said = single("norms", norms), single("told", told)
    reply = pb.Reply(
        device=device,
        round=round,
        step=step,
        gradient=describe(gradient),
        served=served,
        norms=None if lengths is None else describe(lengths),
        told=None if said is None else describe(said),
    )
    return frame(pb.ToDevice(reply=reply), gradient, lengths, said)


def close_frame(relay: bytes, factors: Tensor | None = None, update: float | None = None) -> bytes:
    """A device's last word; the clip factors of its last step and its update's squared norm, where these travel."""
    counts = single("factors", factors)
    close = pb.Close(relay=relay, factors=None if counts is None else describe(counts), update=update)
    return frame(pb.ToEdge(close=close), counts)


def read_upload(message: pb.Upload, data: memoryview | Arrived) -> tuple[Payload, Tensor | None, Tensor | None]:
    """The smashed data, the labels and the clip factors of an upload; WireError for what cannot be."""
    if isinstance(data, Arrived):
        return data.payload, data.beside.get("targets"), data.beside.get("factors")
    smashed, data = read_payload(message.smashed, data)
    labels, data = _read_single(message, "targets", data)
    factors, data = _read_single(message, "factors", data)
    _nothing_left(data)
    return smashed, labels, factors


def read_reply(message: pb.Reply, data: memoryview | Arrived) -> tuple[Payload, Tensor | None]:
    """The cut gradient and the samples' norms of a reply; WireError for a dtype, shape or size that cannot be."""
    gradient, norms, told = read_telling_reply(message, data)
    if told is not None:
        raise WireError("a reply tells a loss, which stays where it was computed")
    return gradient, norms


def read_telling_reply(message: pb.Reply, data: memoryview | Arrived) -> tuple[Payload, Tensor | None, Tensor | None]:
    """The same with what a server above an edge tells: mean loss and its weight (2,), not checked here."""
    if isinstance(data, Arrived):
        return data.payload, data.beside.get("norms"), data.beside.get("told")
    gradient, data = read_payload(message.gradient, data)
    norms, data = _read_single(message, "norms", data)
    told, data = _read_single(message, "told", data)
    _nothing_left(data)
    return gradient, norms, told


def read_close(message: pb.Close, data: memoryview) -> Tensor | None:
    """The clip factors with which a device closes; WireError for what cannot be."""
    factors, data = _read_single(message, "factors", data)
    _nothing_left(data)
    return factors


def describe(payload: Payload) -> pb.Payload:
    """A payload's codec, names, dtypes and shapes; WireError for a dtype or size that the wire does not carry."""
    return _described(payload.codec, _signature(payload), payload.structure)


def read_payload(message: pb.Payload, data: memoryview) -> tuple[Payload, memoryview]:
    """The payload whose tensors `data` begins with, and what is behind them; WireError for what cannot be."""
    names = [tensor.name for tensor in message.tensors]
    if len(names) > MAX_TENSORS:
        raise WireError(f"a payload has {len(names)} tensors; at most {MAX_TENSORS} are allowed")
    if len(set(names)) < len(names):
        raise WireError(f"a payload of codec {message.codec[:40]!r} has two tensors of one name")
    arrays = []
    for tensor in message.tensors:
        values, data = _read(tensor, data)
        arrays.append((tensor.name, values))
    return Payload(message.codec, tuple(arrays), message.structure), data


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse values that are not finite: one of them would spoil the model of everybody."""
    # The extremes of what holds a NaN are NaN: one pass, and no tensor of truth values.
    if tensor.is_floating_point() and tensor.numel() and not all(isfinite(value) for value in torch.aminmax(tensor)):
        raise WireError(f"{name} has a value that is not finite; the sender's training has diverged")


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse class labels that are not integers (B,) from 0 to classes - 1."""
    if labels.is_floating_point() or labels.dim() != 1:
        raise WireError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; class labels are integers (B,)")
    if not labels.numel():
        return
    lowest, highest = (int(value) for value in torch.aminmax(labels))
    if not 0 <= lowest <= highest < classes:
        raise WireError(f"labels lie between {lowest} and {highest}; the model has classes 0 to {classes - 1}")


def upload_bytes(
    smashed: Payload, targets: Tensor | None, factors: Tensor | None = None, rows: int | None = None
) -> int:
    """The size in bytes of an upload's frame, headers included; it depends on codec, names, dtypes and shapes alone.

    `targets` is None where labels stay on the device. `rows`: as if the batch had so many, where its own size is
    private and its codec encodes row by row. WireError for a dtype that the wire does not carry.
    """
    singles = [("targets", targets)] + ([] if factors is None else [("factors", factors)])
    rest = tuple([_resized(name, tensor, rows) for name, tensor in singles if tensor is not None])
    return _upload_bytes(smashed.codec, _signature(smashed, rows), rest, smashed.structure)


def reply_bytes(
    gradient: Payload, norms: Tensor | None = None, rows: int | None = None, told: Tensor | None = None
) -> int:
    """The size in bytes of a reply's frame, headers included; as `upload_bytes`."""
    rest: Signature = () if norms is None else (_resized("norms", norms, rows),)
    rest += () if told is None else (_resized("told", told, None),)
    return _reply_bytes(gradient.codec, _signature(gradient, rows), rest, gradient.structure)


def single(name: str, tensor: Tensor | None) -> Payload | None:
    """A tensor beside smashed data or gradients as it travels, by no codec."""
    return None if tensor is None else Payload("identity", ((name, tensor),))


def _read_single(
    message: pb.Upload | pb.Reply | pb.Close, name: str, data: memoryview
) -> tuple[Tensor | None, memoryview]:
    if not message.HasField(name):
        return None, data
    payload, data = read_payload(getattr(message, name), data)
    if len(payload.arrays) != 1:
        what = "labels" if name == "targets" else name
        raise WireError(f"the {what} of a message are {len(payload.arrays)} tensors; they are one")
    return payload.arrays[0][1], data


def _signature(payload: Payload, rows: int | None = None) -> Signature:
    return tuple([_resized(name, tensor, rows) for name, tensor in payload.arrays])


def _resized(name: str, tensor: Tensor, rows: int | None) -> tuple[str, torch.dtype, torch.Size]:
    shape = tensor.shape
    if rows is None or tells_alone(name):
        return name, tensor.dtype, shape
    return name, tensor.dtype, torch.Size([rows, *shape[1:]])


@lru_cache(maxsize=4096)
def _upload_bytes(codec: str, smashed: Signature, rest: Signature, structure: str = "") -> int:
    head = pb.Upload(device=_ANY, round=_ANY, step=_ANY).ByteSize() + _field(_payload_bytes(codec, smashed, structure))
    return _frame_bytes(head, smashed, rest)


@lru_cache(maxsize=4096)
def _reply_bytes(codec: str, gradient: Signature, rest: Signature, structure: str = "") -> int:
    head = pb.Reply(device=_ANY, round=_ANY, step=_ANY, served=_ANY).ByteSize()
    return _frame_bytes(head + _field(_payload_bytes(codec, gradient, structure)), gradient, rest)


def _frame_bytes(head: int, payload: Signature, rest: Signature) -> int:
    """Of a frame whose message is `head` bytes before the tensors that travel beside its payload are named."""
    head += sum(_field(_payload_bytes("identity", (one,))) for one in rest)
    return _LENGTH + _field(head) + _data_bytes(payload) + _data_bytes(rest)


def _payload_bytes(codec: str, signature: Signature, structure: str = "") -> int:
    tensors = (pb.Tensor(name=name, dtype=_name(name, dtype), shape=shape) for name, dtype, shape in signature)
    return pb.Payload(codec=codec, structure=structure).ByteSize() + sum(
        _field(tensor.ByteSize()) for tensor in tensors
    )


def _data_bytes(signature: Signature) -> int:
    return sum(shape.numel() * dtype.itemsize for _, dtype, shape in signature)


def _field(size: int) -> int:
    """The bytes of a field of this many: its tag (one byte below field 16), its length as a varint, itself."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size


def _name(name: str, dtype: torch.dtype) -> str:
    if dtype not in _NAMES:
        raise WireError(f"tensor {name!r} is {dtype}; the wire carries {', '.join(_DTYPES)}")
    return _NAMES[dtype]


@lru_cache(maxsize=4096)
def _described(codec: str, signature: Signature, structure: str = "") -> pb.Payload:
    """Not to be changed by whoever gets it: a message that it is put into holds a copy."""
    return pb.Payload(codec=codec, tensors=[_describe(*tensor) for tensor in signature], structure=structure)


def _describe(name: str, dtype: torch.dtype, shape: torch.Size) -> pb.Tensor:
    known = _name(name, dtype)
    if shape.numel() > MAX_ELEMENTS:
        raise WireError(f"tensor {name!r} has {shape.numel()} elements; the wire carries {MAX_ELEMENTS}: cut batches")
    return pb.Tensor(name=name, dtype=known, shape=shape)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes (n,) uint8, not copied where they lie in order in this machine's memory.

    By NumPy as far as possible: each operation of torch gives up the interpreter's lock, for which another thread may
    be waiting, and that takes longer than the operation.
    """
    if tensor.requires_grad or tensor.device.type != "cpu" or not tensor.is_contiguous():
        tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:  # which NumPy does not know
        tensor = tensor.view(torch.int16)
    return tensor.numpy().reshape(-1).view(np.uint8).data


def checked_tensor(message: pb.Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    """The dtype and the shape that a message claims; WireError for what the wire does not carry."""
    name, dtype = f"tensor {message.name[:40]!r}", _DTYPES.get(message.dtype)
    shape = tuple(message.shape)
    if dtype is None:
        raise WireError(f"{name} claims dtype {message.dtype[:40]!r}; allowed are {', '.join(_DTYPES)}")
    if len(shape) > MAX_DIMENSIONS:
        raise WireError(f"{name} claims {len(shape)} dimensions; at most {MAX_DIMENSIONS} are allowed")
    # In Python's integers, where torch's would overflow; also where one dimension is zero, for strides overflow too.
    if prod(max(1, size) for size in shape) > MAX_ELEMENTS:
        raise WireError(f"{name} claims shape {shape}; at most {MAX_ELEMENTS} elements are allowed")
    return dtype, shape


def _read(message: pb.Tensor, data: memoryview) -> tuple[Tensor, memoryview]:
    dtype, shape = checked_tensor(message)
    name, size = f"tensor {message.name[:40]!r}", prod(shape) * dtype.itemsize
    if size > len(data):
        raise WireError(f"{name} has {len(data)} bytes and claims shape {shape} of {message.dtype}: {size} bytes")
    # Memory of torch's own: writable, and aligned as kernels of the same numbers in one process see it.
    values = torch.empty(shape, dtype=dtype)
    raw = np.frombuffer(tensor_bytes(values), np.uint8)
    raw[:] = np.frombuffer(data, np.uint8, size)
    if dtype is torch.bool:
        _check_bool(name, raw)
    return values, data[size:]


def _check_bool(name: str, raw: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
    if raw.size and raw.max() > 1:
        raise WireError(f"{name} is bool and has bytes other than 0 and 1")


def _nothing_left(data: memoryview) -> None:
    if data:
        raise WireError(f"a frame has {len(data)} bytes behind the tensors that it names")
