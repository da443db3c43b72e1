"""What a device computes of a question before it asks: the first part of the model, and the codec."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fsl.codecs.codec import Codec, Payload
from fsl.codecs.codec_choice import CodecChoice
from fsl.codecs.codec_maker import codec_of
from fsl.errors import ConfigError, WireError
from fsl.importing.spec import Spec
from fsl.inference.planning.split_costs import IDENTITY
from fsl.inference.serving.device_counts import DeviceCounts
from fsl.inference.serving.device_exits import DeviceExits, LeftRows
from fsl.inference.serving.pending import PendingQuestion
from fsl.inference.serving.point_gate import PointGate, contiguous
from fsl.inference.serving.served_codecs import CutWriter, codec_text, own_codec
from fsl.inference.split_points import INPUT, OUTPUT, SplitPoints
from fsl.segments.tensor_trees import Values

_NOTHING = Payload("", ())


class DevicePart:
    """Makes questions: checks inputs, computes up to the point, and encodes what crosses; any thread may ask.

    `lock`: held while the model computes. ConfigError for inputs, points and codecs that cannot be.
    """

    def __init__(
        self,
        points: SplitPoints,
        codecs: Mapping[str, CodecChoice] | Sequence[str],
        exits: DeviceExits | None,
        lock: threading.Lock,
        counts: DeviceCounts,
        clock: Callable[[], float],
    ) -> None:
        self._points = points
        self._exits = exits
        self._lock = lock
        self._counts = counts
        if exits is not None:
            exits.check(points)
        self._clock = clock
        given = dict(codecs) if isinstance(codecs, Mapping) else {name: name for name in codecs}
        given.pop(IDENTITY, None)
        self._specs = {IDENTITY: own_codec(IDENTITY), **{name: own_codec(each) for name, each in given.items()}}
        self._names = [*self._specs]
        self._gates = {INPUT: PointGate(points, INPUT)}
        self._writers: dict[tuple[str, str], CutWriter] = {}

    @property
    def codecs(self) -> tuple[str, ...]:
        """Its codecs but for identity, described for an edge."""
        return tuple(codec_text(spec) for name, spec in self._specs.items() if name != IDENTITY)

    def question(self, inputs: Values, point: str, codec: str, deadline: float | None) -> PendingQuestion:
        """Returns a question that is ready to be asked, of the rows that have not left by an exit."""
        asked = self._clock()
        self._points.check(point)
        if codec not in self._specs:
            raise ConfigError(f"codec={codec!r}: this device has {', '.join(self._names)}; name others in its codecs")
        if deadline is not None and not deadline >= 0:
            raise ConfigError(f"deadline={deadline}: it is a number of seconds from 0 on, or None")
        rows = len(inputs)
        if not rows:
            raise ConfigError("inputs have no rows; give a batch of at least 1")
        try:
            inputs = self._gates[INPUT].check(inputs, rows)
        except WireError as error:
            raise ConfigError(f"inputs: {error}") from None
        with self._lock:
            writer = None if point == OUTPUT else self._writer(point, codec)
            values, left = self._begun(point, inputs, writer)
            finished = values if isinstance(values, Tensor) and (writer is None or not len(values)) else None
            computed = self._clock()
            payload = _NOTHING if writer is None or finished is not None else writer.encode(values)
        now = self._clock()
        return PendingQuestion(
            point=point,
            codec=self._names.index(codec),
            codec_name=codec,
            rows=len(values),
            values=values,
            payload=payload,
            finished=finished,
            left=left,
            counts=self._counts,
            asked=asked,
            until=math.inf if deadline is None else asked + deadline,
            head=computed - asked,
            encode=now - computed,
        )

    def _begun(self, point: str, inputs: Values, writer: CutWriter | None) -> tuple[Values, LeftRows | None]:
        if self._exits is not None:
            return self._exits.begin(point, inputs, None if writer is None else writer.gate)
        values = self._points.head(point, inputs)
        return values if writer is None else contiguous(values), None

    def _writer(self, point: str, codec: str) -> CutWriter:
        if (point, codec) not in self._writers:
            if point not in self._gates:
                self._gates[point] = PointGate(self._points, point)
            self._writers[point, codec] = CutWriter(_maker(self._specs[codec]), self._gates[point])
        return self._writers[point, codec]


def _maker(spec: Spec) -> Callable[[], Codec]:
    return lambda: codec_of(spec)
