"""Payloads as protobuf messages: checked on the way in, and weighed without being written.

Nothing is unpickled. dtype, shape and size are checked before anything reaches a trainer.
"""

from functools import lru_cache
from math import prod

import numpy as np
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

_ANY = 1
Signature = tuple[tuple[str, torch.dtype, torch.Size], ...]


def payload_to_proto(payload: Payload) -> pb.Payload:
    """A payload as a message."""
    return pb.Payload(codec=payload.codec, tensors=[_to_proto(name, tensor) for name, tensor in payload.arrays])


def payload_from_proto(message: pb.Payload) -> Payload:
    """The payload in a message; WireError for a dtype, shape or size that cannot be."""
    return Payload(message.codec, tuple((tensor.name, _from_proto(tensor)) for tensor in message.tensors))


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse values that are not finite: one of them would spoil the model of everybody."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise WireError(f"{name} has a value that is not finite; the sender's training has diverged")


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse class labels outside of the model's classes."""
    if labels.is_floating_point() or labels.dim() != 1:
        raise WireError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; class labels are integers (B,)")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise WireError(
            f"labels lie between {int(labels.min())} and {int(labels.max())}; the model has classes 0 to {classes - 1}"
        )


def upload_bytes(smashed: Payload, targets: Tensor | None) -> int:
    """The size in bytes of the serialised Upload, header included."""
    if targets is None:
        return _upload_bytes(smashed.codec, _signature(smashed), None, None)
    return _upload_bytes(smashed.codec, _signature(smashed), targets.dtype, targets.shape)


def reply_bytes(gradient: Payload) -> int:
    """The size in bytes of the serialised Reply, header included."""
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
    labels = None if dtype is None or shape is None else _sketch("identity", (("targets", dtype, shape),))
    return int(
        pb.Upload(device=_ANY, round=_ANY, step=_ANY, smashed=_sketch(codec, smashed), targets=labels).ByteSize()
    )


@lru_cache(maxsize=4096)
def _reply_bytes(codec: str, gradient: Signature) -> int:
    return int(pb.Reply(device=_ANY, round=_ANY, step=_ANY, gradient=_sketch(codec, gradient)).ByteSize())


def _sketch(codec: str, signature: Signature) -> pb.Payload:
    tensors = [
        pb.Tensor(name=name, dtype=_NAMES[dtype], shape=shape, data=bytes(shape.numel() * dtype.itemsize))
        for name, dtype, shape in signature
    ]
    return pb.Payload(codec=codec, tensors=tensors)


def _to_proto(name: str, tensor: Tensor) -> pb.Tensor:
    if tensor.dtype not in _NAMES:
        raise WireError(f"tensor '{name}' is {tensor.dtype}; the wire carries {', '.join(_DTYPES)}")
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return pb.Tensor(name=name, dtype=_NAMES[tensor.dtype], shape=tensor.shape, data=flat.numpy().tobytes())


def _from_proto(message: pb.Tensor) -> Tensor:
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise WireError(f"tensor '{message.name}' claims dtype '{message.dtype}'; allowed are {', '.join(_DTYPES)}")
    elements = prod(message.shape)  # in Python's integers: torch's would overflow
    if elements > MAX_ELEMENTS or elements * dtype.itemsize != len(message.data):
        raise WireError(
            f"tensor '{message.name}' has {len(message.data)} bytes and claims shape {tuple(message.shape)} of "
            f"{message.dtype}"
        )
    shape = torch.Size(message.shape)
    # Copied: a trainer may write into its input, and the message's bytes are not writable.
    raw = torch.from_numpy(np.frombuffer(message.data, np.uint8).copy())
    return raw.view(dtype).reshape(shape) if elements else torch.empty(shape, dtype=dtype)
