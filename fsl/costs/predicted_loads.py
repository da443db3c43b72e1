"""Predicts what devices would load on links and machines in a round at a cut, from shapes and codecs alone."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from fsl.costs.forecast import RoundBatches, step_bytes, traffic
from fsl.costs.round_cost import DeviceLoad
from fsl.costs.serving import Serving
from fsl.costs.stages import SegmentCost, StageCost
from fsl.segments.modes import needs_two_rows, start_training
from fsl.segments.states import Layout
from fsl.segments.tensor_trees import Values
from fsl.settings.training_settings import Training
from fsl.settings.wire_settings import Wire
from fsl.split.placing import Place


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
        self._batches = [RoundBatches.of(count, size, epochs, skip) for count in samples]
        self._bytes: dict[tuple[RoundBatches, int], tuple[int, int]] = {}

    def of(self, device: int, cut: int, edge: int) -> DeviceLoad:
        """Returns the load of a device that is cut at this one of the cuts, in order, and attached to this edge."""
        batches = self._batches[device]
        if (batches, cut) not in self._bytes:
            step = partial(
                step_bytes, [self._cuts[cut].crossing], self._label, up=self._wire.up_spec, down=self._wire.down_spec
            )
            self._bytes[batches, cut] = traffic(batches, self._serving, step)
        up, down = self._bytes[batches, cut]
        sent = self._model_bytes if self._serving.kind == "none" else self._cuts[cut].front_bytes
        model_bytes = 0 if self._fronts == "private" else 2 * sent
        return DeviceLoad(device, edge, batches.steps, batches.rows, up, down, model_bytes, cut=cut)


def _segment(name: str, place: Place, stages: Sequence[StageCost]) -> SegmentCost:
    return SegmentCost(name, place, _sum(stages, "forward_flops"), _sum(stages, "backward_flops"))


def _sum(stages: Sequence[StageCost], name: str) -> float:
    return float(sum(getattr(stage, name) for stage in stages))
