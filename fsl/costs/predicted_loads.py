"""Predicts what devices would load on links and machines in a round at a cut, from shapes and codecs alone."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from fsl.codecs.codec_maker import codec_of
from fsl.codecs.cut_codec import CutCodec
from fsl.costs.round_cost import DeviceLoad
from fsl.costs.serving import Serving
from fsl.costs.stages import SegmentCost, StageCost
from fsl.messages.frames import reply_bytes, upload_bytes
from fsl.segments.modes import needs_two_rows, start_training
from fsl.segments.states import Layout
from fsl.segments.tensor_trees import Values, activations_of, of_activations, tensors_of
from fsl.settings.training_settings import Training
from fsl.settings.wire_settings import Wire
from fsl.split.cutting import Place


@dataclass(frozen=True)
class CutCost:
    """What a model costs that is cut at one place: its halves for one sample, and what of it travels.

    `crossing`: what crosses there, of two samples. `front_bytes`: the front's parameters and buffers, as they are sent.
    """

    halves: tuple[SegmentCost, SegmentCost]
    front_bytes: int
    crossing: Values

    @staticmethod
    def of(stages: Sequence[StageCost], number: int) -> "CutCost":
        """Returns what a model of these stages costs where it is cut behind the stage of this number."""
        before, behind = stages[: number + 1], stages[number + 1 :]
        halves = _segment("front", "device", before), _segment("back", "edge", behind)
        return CutCost(halves, int(_sum(before, "parameter_bytes")), stages[number].crossing)


class PredictedLoads:
    """The load of each device in a round, at each of several cuts, exactly as it would be measured."""

    def __init__(
        self,
        model: nn.Module,
        cuts: Sequence[CutCost],
        samples: Sequence[int],
        training: Training,
        wire: Wire,
        serving: Serving,
        fronts: str,
        label: Tensor,
    ):
        """`samples`: how many each device holds. `label`: the target (1, ...) of one sample."""
        self._cuts, self._wire, self._serving, self._fronts, self._label = cuts, wire, serving, fronts, label
        self._model_bytes = Layout(model).bytes
        trained = copy.deepcopy(model)
        start_training(trained)
        skip = needs_two_rows([trained])
        size, epochs = training.batch_size, training.local_epochs
        self._batches = [_Batches.of(count, size, epochs, skip) for count in samples]
        self._bytes: dict[tuple[_Batches, int], tuple[int, int]] = {}

    def of(self, device: int, cut: int, edge: int) -> DeviceLoad:
        """Returns the load of a device that is cut at this one of the cuts, in order, and attached to this edge."""
        batches = self._batches[device]
        if (batches, cut) not in self._bytes:
            self._bytes[batches, cut] = self._crossing(batches, self._cuts[cut].crossing)
        up, down = self._bytes[batches, cut]
        sent = self._model_bytes if self._serving.kind == "none" else self._cuts[cut].front_bytes
        model_bytes = 0 if self._fronts == "private" else 2 * sent
        steps = sum(count for count, _ in batches.sizes)
        rows = sum(count * rows for count, rows in batches.sizes)
        return DeviceLoad(device, edge, steps, rows, up, down, model_bytes, cut=cut)

    def _crossing(self, batches: "_Batches", crossing: Values) -> tuple[int, int]:
        """Returns the bytes up and down of a round's steps."""
        codecs = [CutCodec(partial(codec_of, spec)) for spec in (self._wire.up_spec, self._wire.down_spec)]
        up = down = 0
        for count, rows in batches.sizes if self._serving.kind != "none" else ():
            values, targets = _blank(crossing, rows), self._label.expand(rows, *self._label.shape[1:])
            gradient = of_activations(activations_of(values), values)
            assert gradient is not None
            up += count * upload_bytes(codecs[0].encode(values), targets)
            down += count * reply_bytes(codecs[1].encode(gradient)) if self._serving.kind != "stream" else 0
        return up, down


@dataclass(frozen=True)
class _Batches:
    """A device's batches in a round: so many full ones, and a smaller last one in each epoch."""

    sizes: tuple[tuple[int, int], ...]  # how many batches, of how many rows

    @staticmethod
    def of(samples: int, batch_size: int, epochs: int, skip_single: bool) -> "_Batches":
        """As `fsl.round.batches.plan_batches` cuts them."""
        full, rest = divmod(samples, batch_size)
        rest = 0 if rest == 1 and skip_single else rest
        return _Batches(tuple((n, rows) for n, rows in ((full * epochs, batch_size), (epochs, rest)) if n and rows))


def _segment(name: str, place: Place, stages: Sequence[StageCost]) -> SegmentCost:
    return SegmentCost(name, place, _sum(stages, "forward_flops"), _sum(stages, "backward_flops"))


def _blank(crossing: Values, rows: int) -> Values:
    """Returns zeros of the shapes that cross a cut, for so many samples."""
    zeros = [tensor.new_zeros(rows, *tensor.shape[1:]) for tensor in tensors_of(crossing)]
    return zeros[0] if isinstance(crossing, Tensor) else crossing.like(zeros)


def _sum(stages: Sequence[StageCost], name: str) -> float:
    return float(sum(getattr(stage, name) for stage in stages))
