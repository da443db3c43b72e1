"""Payloads as protobuf messages: checked on the way in, and weighed without being written.

Nothing is unpickled. dtype, shape and size are checked before anything reaches a trainer.
"""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from fsl.codecs.base import Payload
from fsl.errors import WireError
from fsl.wire import messages_pb2 as pb

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

_ANY = 1
Signature = tuple[tuple[str, torch.dtype, torch.Size], ...]


def payload_to_proto(payload: Payload) -> pb.Payload:
    """A payload as a message; WireError for a dtype or size that the wire does not carry."""
    return pb.Payload(codec=payload.codec, tensors=[_to_proto(name, tensor) for name, tensor in payload.arrays])


def payload_from_proto(message: pb.Payload) -> Payload:
    """The payload in a message; WireError for a dtype, shape or size that cannot be, and for a name used twice."""
    names = [tensor.name for tensor in message.tensors]
    if len(set(names)) < len(names):
        raise WireError(f"a payload of codec {message.codec[:40]!r} has two tensors of one name")
    return Payload(message.codec, tuple((tensor.name, _from_proto(tensor)) for tensor in message.tensors))


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse values that are not finite: one of them would spoil the model of everybody."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise WireError(f"{name} has a value that is not finite; the sender's training has diverged")


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse class labels that are not integers (B,) from 0 to classes - 1."""
    if labels.is_floating_point() or labels.dim() != 1:
        raise WireError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; class labels are integers (B,)")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise WireError(
            f"labels lie between {int(labels.min())} and {int(labels.max())}; the model has classes 0 to {classes - 1}"
        )


def upload_bytes(smashed: Payload, targets: Tensor | None) -> int:
    """The size in bytes of the serialised Upload, header included; it depends on codec, names, dtypes and shapes alone.

    `targets` is None where labels stay on the device. WireError for a dtype that the wire does not carry.
    """
    if targets is None:
        return _upload_bytes(smashed.codec, _signature(smashed), None, None)
    return _upload_bytes(smashed.codec, _signature(smashed), targets.dtype, targets.shape)


def reply_bytes(gradient: Payload) -> int:
    """The size in bytes of the serialised Reply, header included; as `upload_bytes`."""
    return _reply_bytes(gradient.codec, _signature(gradient))


def upload_to_proto(device: int, round: int, step: int, smashed: Payload, targets: Tensor | None) -> pb.Upload:
    """One step's upload as a message."""
    labels = None if targets is None else payload_to_proto(_targets(targets))
    return pb.Upload(device=device, round=round, step=step, smashed=payload_to_proto(smashed), targets=labels)


def reply_to_proto(device: int, round: int, step: int, gradient: Payload) -> pb.Reply:
    """One step's reply as a message."""
    return pb.Reply(device=device, round=round, step=step, gradient=payload_to_proto(gradient))


def _targets(targets: Tensor) -> Payload:
    return Payload("identity", (("targets", targets),))


def _signature(payload: Payload) -> Signature:
    return tuple([(name, tensor.dtype, tensor.shape) for name, tensor in payload.arrays])


@lru_cache(maxsize=4096)
def _upload_bytes(codec: str, smashed: Signature, dtype: torch.dtype | None, shape: torch.Size | None) -> int:
    size = pb.Upload(device=_ANY, round=_ANY, step=_ANY).ByteSize() + _field(_payload_bytes(codec, smashed))
    if dtype is None or shape is None:
        return size
    return size + _field(_payload_bytes("identity", (("targets", dtype, shape),)))


@lru_cache(maxsize=4096)
def _reply_bytes(codec: str, gradient: Signature) -> int:
    return pb.Reply(device=_ANY, round=_ANY, step=_ANY).ByteSize() + _field(_payload_bytes(codec, gradient))


def _payload_bytes(codec: str, signature: Signature) -> int:
    return pb.Payload(codec=codec).ByteSize() + sum(_field(_tensor_bytes(*array)) for array in signature)


def _tensor_bytes(name: str, dtype: torch.dtype, shape: torch.Size) -> int:
    data = shape.numel() * dtype.itemsize
    header = pb.Tensor(name=name, dtype=_name(name, dtype), shape=shape).ByteSize()
    return header + (_field(data) if data else 0)  # proto3 leaves empty bytes out


def _field(size: int) -> int:
    """The bytes of a field of this many: its tag (one byte below field 16), its length as a varint, itself."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size


def _name(name: str, dtype: torch.dtype) -> str:
    if dtype not in _NAMES:
        raise WireError(f"tensor {name!r} is {dtype}; the wire carries {', '.join(_DTYPES)}")
    return _NAMES[dtype]


def _to_proto(name: str, tensor: Tensor) -> pb.Tensor:
    dtype = _name(name, tensor.dtype)
    if tensor.numel() > MAX_ELEMENTS:
        raise WireError(f"tensor {name!r} has {tensor.numel()} elements; the wire carries {MAX_ELEMENTS}: cut batches")
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return pb.Tensor(name=name, dtype=dtype, shape=tensor.shape, data=flat.numpy().tobytes())


def _from_proto(message: pb.Tensor) -> Tensor:
    name, dtype = f"tensor {message.name[:40]!r}", _DTYPES.get(message.dtype)
    if dtype is None:
        raise WireError(f"{name} claims dtype {message.dtype[:40]!r}; allowed are {', '.join(_DTYPES)}")
    if len(message.shape) > MAX_DIMENSIONS:
        raise WireError(f"{name} claims {len(message.shape)} dimensions; at most {MAX_DIMENSIONS} are allowed")
    # In Python's integers, where torch's would overflow; also where one dimension is zero, for strides overflow too.
    if prod(max(1, size) for size in message.shape) > MAX_ELEMENTS:
        raise WireError(f"{name} claims shape {tuple(message.shape)}; at most {MAX_ELEMENTS} elements are allowed")
    shape, data = torch.Size(message.shape), message.data
    if shape.numel() * dtype.itemsize != len(data):
        raise WireError(f"{name} has {len(data)} bytes and claims shape {tuple(shape)} of {message.dtype}")
    if not data:
        return torch.empty(shape, dtype=dtype)
    # Copied: a trainer may write into its input, and the message's bytes are not writable.
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if dtype is torch.bool and int(raw.max()) > 1:
        raise WireError(f"{name} is bool and has bytes other than 0 and 1")
    return raw.view(dtype).reshape(shape)
