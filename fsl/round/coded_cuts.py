"""Runs a model's segments as devices and edges do, with the codecs of its cuts between them."""

import copy
from typing import Any

from torch import nn

from fsl.codecs.codec_maker import codec_maker
from fsl.codecs.cut_codec import CutCodec
from fsl.importing.spec import Spec
from fsl.round.workload import Worker
from fsl.segments.tensor_trees import Values, joined, passed, received


class CodedCut(nn.Module):
    """A cut in an evaluation: what passes it is encoded and decoded, as between a device and its edge.

    `rows`: of a batch; a codec that couples rows gets so many at once, as in training.
    """

    def __init__(self, codec: CutCodec, rows: int, shared: frozenset[int]) -> None:
        super().__init__()
        codec.training = False
        self._codec, self._rows, self._shared = codec, rows, shared
        # Each end remembers for itself: what one has encoded is behind it, and before the other.
        self._other_end = copy.deepcopy(codec) if codec.stateful else codec

    def forward(self, given: Any) -> Any:
        """Returns values (B, ...) in the structure in which they came."""
        values = received(given, self._shared)
        if self._codec.rowwise or len(values) <= self._rows:
            return self._crossed(values)
        sizes = [min(self._rows, len(values) - first) for first in range(0, len(values), self._rows)]
        return passed(joined([received(self._crossed(part), self._shared) for part in values.split(sizes)]))

    def _crossed(self, values: Values) -> Any:
        return passed(self._other_end.decode(self._codec.encode(values)))


def with_codecs(worker: Worker, up: Spec | None, down: Spec | None, rows: int) -> list[nn.Module]:
    """Returns a model's segments in order, and between them its cuts where a codec is.

    Behind a front goes `up`; before a tail, which is on the device again, `down`; before a top `up` again. Without
    codecs where devices are cut at different places, and where a model has a front for each party.
    """
    if worker.workload.cuts or worker.parties:
        return worker.modules
    found: list[nn.Module] = []
    chain, allowed = worker.chain, worker.workload.allowed
    names = list(chain)
    for name, after in zip(names, [*names[1:], ""]):
        found.append(chain[name].module)
        spec = down if after == "tail" else up
        if after and spec is not None:
            codec = CutCodec(codec_maker(spec, allowed), allowed)
            found.append(CodedCut(codec, rows, chain[name].shared))
    return found
