"""Lets devices in at an edge that serves a model: who they are, and what both have."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fsl.codecs.codec import Codec
from fsl.codecs.identity import Identity
from fsl.errors import FslError, WireError
from fsl.inference.serving.asked_stream import StreamTerms
from fsl.inference.serving.point_gate import PointGate
from fsl.inference.serving.question_admission import QuestionAdmission
from fsl.inference.serving.served_codecs import CutWriter, served_codec
from fsl.inference.serving.serving_tokens import check_grant
from fsl.inference.split_points import OUTPUT, SplitPoints
from fsl.installed import __version__
from fsl.messages import inference_pb2 as pb
from fsl.messages.versions import PROTOCOL, check_versions
from fsl.wire.edge.refusal import Refusal

Code = grpc.StatusCode
_CODECS = 16  # that a device may use over one stream


class Greeting:
    """Agrees with a device on what its stream carries; raises what speaks against it.

    `keys`: whose tokens count; None: everybody may ask.
    """

    def __init__(
        self,
        points: SplitPoints,
        keys: Sequence[Ed25519PublicKey] | None,
        allowed: Iterable[str],
        rows: int,
        unanswered: int,
        wall: Callable[[], float] = time.time,
        admission: QuestionAdmission | None = None,
    ) -> None:
        self._model = points.digest()
        self._gates = {point: PointGate(points, point) for point in points.names if point != OUTPUT}
        self._keys = keys
        self._allowed = tuple(allowed)
        self._rows = rows
        self._unanswered = unanswered
        self._wall = wall
        self._admission = admission

    def bytes_of(self, rows: int) -> int:
        """Returns the bytes of what crosses at the widest point, for so many rows."""
        return max(gate.rest_bytes + rows * gate.row_bytes for gate in self._gates.values())

    def terms(self, knock: pb.Knock) -> StreamTerms:
        """Returns what a stream carries; Refusal, TrustError or WireError for a device that cannot be served."""
        name, expires = "anybody", float("inf")
        if self._keys is not None:
            grant = check_grant(knock.token, self._keys, self._wall())
            name, expires = grant.name, grant.expires
        check_versions(knock.protocol, knock.version, "the device", "this edge")
        if knock.model != self._model:
            raise Refusal(
                Code.FAILED_PRECONDITION,
                f"the device has model {knock.model[:12]!a}, and this edge serves {self._model[:12]!r}: class or "
                "weights differ; give both the same run",
            )
        for point in knock.points:
            if point not in self._gates and point != OUTPUT:
                raise Refusal(
                    Code.NOT_FOUND, f"point {point[:60]!a} is not loaded here; there are {', '.join(self._gates)}"
                )
        if len(knock.codecs) > _CODECS:
            raise Refusal(Code.INVALID_ARGUMENT, f"{len(knock.codecs)} codecs; at most {_CODECS} over one stream")
        return StreamTerms(
            name=name,
            points=tuple(self._gates),
            writer=self._writers([Identity, *(served_codec(text, self._allowed) for text in knock.codecs)]),
            rows=self._rows,
            unanswered=self._unanswered,
            expires=expires,
            admission=self._admission,
        )

    def loaded(self, terms: StreamTerms, most: int) -> pb.Loaded:
        """Returns the edge's answer; `most` bytes of a record."""
        return pb.Loaded(
            protocol=PROTOCOL,
            version=__version__,
            points=terms.points,
            max_bytes=most,
            max_rows=terms.rows,
            unanswered=terms.unanswered,
        )

    def _writers(self, codecs: Sequence[Callable[[], Codec]]) -> Callable[[int, int], CutWriter]:
        gates = tuple(self._gates.values())

        @cache
        def writer(point: int, codec: int) -> CutWriter | str:
            try:
                return CutWriter(codecs[codec], gates[point])
            except FslError as error:
                return str(error)
            except Exception as error:  # of a constructor or a codec of the user's
                return f"{type(error).__name__}: {error}"

        def of(point: int, codec: int) -> CutWriter:
            if point >= len(gates) or codec >= len(codecs):
                raise WireError(f"point {point} or codec {codec} was not named when the stream began")
            found = writer(point, codec)
            if isinstance(found, str):
                raise WireError(found)
            return found

        return of
