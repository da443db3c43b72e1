"""Codecs of what crosses between a device and an edge that serves it: described by one, built by both."""

import json
from collections.abc import Callable, Iterable

import torch

from fsl.codecs.codec import Codec, Payload
from fsl.codecs.codec_choice import CodecChoice, codec_spec
from fsl.codecs.codec_maker import codec_maker
from fsl.codecs.cut_codec import CutCodec
from fsl.codecs.identity import Identity
from fsl.codecs.packet_loss import PacketLoss
from fsl.errors import ConfigError, FslError, WireError
from fsl.importing.import_paths import ALLOWED
from fsl.importing.spec import Spec
from fsl.inference.serving.point_gate import PointGate
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import describe
from fsl.segments.tensor_trees import Values

_ROOM = 1 << 10  # bytes that a decoded tensor may have beyond those of its rows
_LONGEST = 4096  # characters of a description
_KEPT = 256  # descriptions, by rows


def own_codec(given: CodecChoice) -> Spec:
    """Returns a device's codec, given in any way that runs take; ConfigError for one that cannot serve."""
    spec = codec_spec("codec.up", given)
    _refuse_unfit(spec.build(), "codec.up")
    return spec


def codec_text(spec: Spec) -> str:
    """Describes a device's codec for the edge."""
    return json.dumps([spec.target, dict(spec.kwargs)], sort_keys=True)


def served_codec(text: str, allowed: Iterable[str] = ALLOWED) -> Callable[[], Codec]:
    """Returns what builds a codec that a device describes; WireError where this edge cannot, or would not serve it."""
    try:
        if len(text) > _LONGEST:
            raise ValueError("it is too long")
        target, kwargs = json.loads(text)
        if not isinstance(target, str) or not isinstance(kwargs, dict):
            raise ValueError("it is no class with arguments")
    except (ValueError, TypeError, RecursionError):
        raise WireError(f"codec {text[:60]!a} is not described by a class and its arguments") from None
    try:
        make = codec_maker(Spec(target, kwargs), allowed)
        _refuse_unfit(make(), f"codec {target[:100]}")
    except FslError as error:
        raise WireError(str(error)) from None
    except Exception as error:  # of a constructor, for arguments that somebody sent
        raise WireError(f"codec {target[:100]} cannot be built: {type(error).__name__}: {error}") from None
    return make


class CutWriter:
    """Encodes and decodes what crosses at one point by one codec, the same for every question.

    Integers and truth values cross as they are.
    """

    def __init__(self, make: Callable[[], Codec], gate: PointGate) -> None:
        self.gate = gate
        self._make = make
        self._fitting: set[int] = set()  # rows of batches that the codec takes
        self._codec = CutCodec(make if gate.activations else Identity, gate.allowed)
        self._codec.training = False
        self._plain = gate.is_plain and isinstance(make(), Identity)
        self._descriptions: dict[int, pb.Payload] = {}  # of plain payloads, by rows

    def is_plain(self, message: pb.Payload, rows: int, size: int) -> bool:
        """Returns whether a payload of `size` bytes is described as the tensor itself, of so many rows."""
        if not self._plain or size != rows * self.gate.row_bytes:
            return False
        if rows not in self._descriptions:
            if len(self._descriptions) >= _KEPT:
                self._descriptions.clear()
            self._descriptions[rows] = describe(Identity().encode(self.gate.empty(rows)))
        return message == self._descriptions[rows]

    def encode(self, values: Values) -> Payload:
        """Encode what crosses, (B, ...); ConfigError where the codec cannot take a batch of this shape."""
        if (rows := len(values)) not in self._fitting:
            for shape in self.gate.activations:
                self._make().refuse_unfit(torch.Size([rows, *shape]))
            self._fitting.add(rows)
        return self._codec.encode(values)

    def decode(self, payload: Payload, rows: int) -> Values:
        """Returns what crossed, of so many rows; WireError for anything else."""
        self.gate.check_structure(payload, rows)
        self._codec.limit = _ROOM + rows * self.gate.largest
        return self.gate.check(self._codec.decode(payload), rows)


def _refuse_unfit(codec: Codec, name: str) -> None:
    if codec.stateful:
        raise ConfigError(
            f"{name}: codec {codec.name} remembers what it sent before, and questions may be answered in any order, by "
            "any edge; use a codec without state"
        )
    if any(isinstance(one, PacketLoss) for one in (codec, *getattr(codec, "stages", ()))):
        raise ConfigError(
            f"{name}: codec packet_loss only simulates a link that loses packets, and here nothing is lost; leave it "
            "out, or serve over one by fsl.inference.lossy"
        )
    codec.refuse_use("up")
