"""Packs a session on its way to another edge, counts its bytes, and checks it on arrival.

A snapshot is one safetensors file; its metadata name run, round, device and step. Nothing in it is unpickled.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fsl.codecs import Payload
from fsl.errors import CheckpointError, WireError
from fsl.faults import said
from fsl.files import metadata_of, tensor_bytes
from fsl.messages.steps import ReplyPacket
from fsl.round.edge_server import EdgeServer
from fsl.round.sessions import Batch, Session, SessionSnapshot
from fsl.segments.finite import finite
from fsl.segments.states import Layout
from fsl.trainers import Snapshot

PROTOCOL = 3
_BACK, _OPTIMIZER, _PENDING, _TRANSIENT, _CODEC = "back.", "optimizer.", "pending.", "transient.", "codec."


@dataclass(frozen=True)
class Passport:
    """Identifies a snapshot's session; an edge takes it only where all fields are as expected."""

    run: str
    round: int
    device: int
    trainer: str  # the edge trainer's import path

    def stamps(self) -> dict[str, Any]:
        """Returns the fields for a snapshot's metadata, whose size does not depend on the run's name."""
        return {**vars(self), "run": sha256(self.run.encode()).hexdigest()}


def pack(snapshot: SessionSnapshot, passport: Passport, layout: Layout) -> bytes:
    """Serialize a snapshot."""
    session, trainer = snapshot.session, snapshot.trainer
    tensors: dict[str, Tensor] = {f"{_OPTIMIZER}{name}": tensor for name, tensor in trainer.optimizer.items()}
    if trainer.back is not None:
        tensors |= {f"{_BACK}{field.name}": view for field, view in layout.views(trainer.back)}
    tensors |= {f"{_TRANSIENT}{name}": tensor for name, tensor in trainer.transients.items()}
    tensors |= {f"{_CODEC}{name}": tensor for name, tensor in snapshot.codecs.items()}
    if session.losses:
        tensors["losses"] = torch.stack(list(session.losses))
    pending = None
    if session.pending is not None:
        gradient = session.pending.gradient
        tensors |= {f"{_PENDING}{i}": tensor for i, (_, tensor) in enumerate(gradient.arrays)}
        names = [name for name, _ in gradient.arrays]
        pending = {"step": session.pending.step, "codec": gradient.codec, "names": names}
        if gradient.structure:
            pending["structure"] = gradient.structure
    said = {
        "protocol": PROTOCOL,
        **passport.stamps(),
        "weight": session.weight,
        "counts": float(trainer.weight),  # the device's weight in averages
        "step": session.step,
        "up_bytes": session.up_bytes,
        "down_bytes": session.down_bytes,
        "batches": [astuple(batch) for batch in session.batches],
        "waiting": {str(step): astuple(batch) for step, batch in session.waiting.items()},
        "pending": pending,
        "replica": trainer.back is not None,
    }
    return tensor_bytes(tensors, {"session": json.dumps(said)})


def unpack(data: bytes, expected: Passport, layout: Layout, accelerator: torch.device | None = None) -> SessionSnapshot:
    """Read a snapshot; WireError, in one line, where it is damaged, or of another session or model."""
    said = _metadata(data)
    if said.get("protocol") != PROTOCOL:
        raise WireError(
            f"a session came by protocol {said.get('protocol')!r}, this edge speaks {PROTOCOL}; all edges must run the "
            "same version of fsl"
        )
    for name, value in expected.stamps().items():
        if said.get(name) != value:
            found, wanted = str(said.get(name))[:80], str(value)
            raise WireError(f"a session of {name} {found} came where {name} {wanted} is expected")
    try:
        tensors = load(data)
        for name, tensor in tensors.items():
            if not finite([tensor]):
                raise ValueError(f"tensor {name[:80]!r} is not finite")
        session = _session(said, tensors)
        back = None
        if said["replica"]:
            named = {k.removeprefix(_BACK): v for k, v in tensors.items() if k.startswith(_BACK)}
            _check_dtypes(named, layout)
            back = layout.pack(named, accelerator)
        optimizer = {k.removeprefix(_OPTIMIZER): v for k, v in tensors.items() if k.startswith(_OPTIMIZER)}
        transients = {k.removeprefix(_TRANSIENT): v for k, v in tensors.items() if k.startswith(_TRANSIENT)}
        _check_transients(transients, layout)
        if accelerator is not None:
            transients = {name: tensor.to(accelerator) for name, tensor in transients.items()}
        codecs = {k.removeprefix(_CODEC): v for k, v in tensors.items() if k.startswith(_CODEC)}
        return SessionSnapshot(session, Snapshot(back, optimizer, _weight(said["counts"]), transients), codecs)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, CheckpointError) as error:
        raise WireError(f"a session came damaged, or from another model: {_line(error)}") from None


def reported_size(data: bytes, snapshot: SessionSnapshot, passport: Passport, layout: Layout, rows: int | None) -> int:
    """Returns a packed snapshot's bytes for reports.

    `rows`: counts each batch as one of so many rows, where its own size is private; None: as it is.
    """
    if rows is None:
        return len(data)
    session, reported = snapshot.session, Batch(rows, float(rows))
    pending = session.pending
    if pending is not None:
        arrays = tuple((name, t.new_zeros((rows, *t.shape[1:]))) for name, t in pending.gradient.arrays)
        pending = replace(pending, gradient=replace(pending.gradient, arrays=arrays))
    session = replace(
        session,
        batches=[reported] * len(session.batches),
        waiting=dict.fromkeys(session.waiting, reported),
        pending=pending,
    )
    return len(pack(replace(snapshot, session=session), passport, layout))


def hand_over(source: EdgeServer, destination: EdgeServer, passport: Passport, layout: Layout) -> int:
    """Move a device's session between two edges of this process, through the bytes that would travel.

    Returns its bytes for reports: see `reported_size`.
    """
    data = pack(source.snapshot(passport.device), passport, layout)
    snapshot = unpack(data, passport, layout, layout_device(source))
    size = reported_size(data, snapshot, passport, layout, source.reported_batch_size)
    destination.adopt(snapshot)
    source.lose(passport.device)
    return size


def layout_device(server: EdgeServer) -> torch.device:
    """Returns the torch device on which an edge trains its back."""
    return server.trainer.bench.back.accelerator


def _metadata(data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(metadata_of(data)["session"])
        if not isinstance(said, dict):
            raise TypeError("its header is no object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(f"a session came damaged: {_line(error)}") from None
    return said


def _session(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Session:
    weight, step = _weight(said["weight"]), said["step"]
    batches = [_batch(value) for value in said["batches"]]
    losses = list(tensors["losses"].unbind()) if "losses" in tensors else []
    if len(losses) != len(batches):
        raise ValueError(f"{len(batches)} steps and {len(losses)} losses")
    pending = None
    if (about := said["pending"]) is not None:
        arrays = tuple((str(name), tensors[f"{_PENDING}{i}"]) for i, name in enumerate(about["names"]))
        pending = ReplyPacket(
            device=said["device"],
            step=_count(about["step"]),
            gradient=Payload(str(about["codec"]), arrays, str(about.get("structure", ""))),
        )
    return Session(
        said["device"],
        weight,
        _count(step),
        _count(said["up_bytes"]),
        _count(said["down_bytes"]),
        losses,
        batches,
        {int(at): _batch(value) for at, value in said["waiting"].items()},
        pending,
    )


def _batch(value: Any) -> Batch:
    rows, counts = value
    return Batch(_count(rows), _weight(counts))


def _weight(value: Any) -> float:
    if not (isinstance(value, float | int) and math.isfinite(value) and value >= 0):
        raise ValueError(f"{value!r} is no weight")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _check_dtypes(named: Mapping[str, Tensor], layout: Layout) -> None:
    known = {field.name: field.dtype for field in layout.fields}
    for name, tensor in named.items():
        if name not in known:
            raise ValueError(f"the model has no tensor {name[:80]!r}")
        if tensor.dtype is not known[name]:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}, the model wants {known[name]}")


def _check_transients(named: Mapping[str, Tensor], layout: Layout) -> None:
    for name, tensor in named.items():
        if name not in layout.transients:
            raise ValueError(f"the model has no buffer {name[:80]!r} beside its state")
        first = layout.transients[name]
        if first is not None and (tensor.dtype, tensor.shape) != (first.dtype, first.shape):
            raise ValueError(f"buffer {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, which it never was")


def _line(error: BaseException) -> str:
    return said(error)[:200]
