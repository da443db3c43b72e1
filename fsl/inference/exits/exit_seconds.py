"""Latency of a model with exits that is divided between a device and an edge, as a function of the bandwidth."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.costs.transfers import transfer_seconds
from fsl.costs.work_counting import macs_of
from fsl.errors import ConfigError
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_outputs import Replay
from fsl.inference.exits.exit_walk import ExitCosts
from fsl.inference.split_points import INPUT, OUTPUT, SplitPoints


@checks_types()
@dataclass(frozen=True)
class ExitSeconds:
    """Seconds of a request: computing, by stage, head and predictor, where each runs, and the link.

    `crossing`: the number of the stage in front of which, or within which, a request goes over the link. Rows that
    leave before it never do, and pay nothing for it; as many as there are stages: none ever does. `crossing_bytes`: of
    a sample, that go up. `link_s`: seconds of the link besides, there and back.
    """

    compute: ExitCosts
    crossing: int
    crossing_bytes: float
    link_s: float = 0.0

    def __post_init__(self) -> None:
        numbers = (
            *self.compute.stages,
            *self.compute.heads,
            *self.compute.predictors,
            self.crossing_bytes,
            self.link_s,
        )
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ConfigError("seconds and bytes of exits: each is a finite number of at least 0")
        if not 0 <= self.crossing <= len(self.compute.stages):
            raise ConfigError(f"crossing={self.crossing}: a stage's number, 0 to {len(self.compute.stages)} (never)")

    def transfer(self, mbit: float) -> float:
        """Returns the seconds of a request that crosses, at so many Mbit/s; infinite at 0."""
        if not mbit >= 0:
            raise ConfigError(f"mbit={mbit}: a bandwidth of at least 0 Mbit/s")
        if not mbit:
            return math.inf
        return self.link_s + transfer_seconds(self.crossing_bytes, mbit)

    def crosses(self, replay: Replay) -> Tensor:
        """Returns which rows go over the link (N,)."""
        if self.crossing == len(self.compute.stages):
            return torch.zeros(len(replay.exits), dtype=torch.bool)
        return replay.arrived[self.crossing]

    def of(self, replay: Replay, mbit: float) -> Tensor:
        """Returns each row's seconds (N,), float64."""
        found = replay.cost(self.compute)
        found[self.crosses(replay)] += self.transfer(mbit)
        return found


@checks_types()
def exit_seconds(
    model: ExitModel,
    cut: str,
    *,
    device_macs_per_second: float,
    edge_macs_per_second: float,
    crossing_bytes: float | None = None,
    link_s: float = 0.0,
) -> ExitSeconds:
    """Returns a model's seconds from rates: what comes before the cut runs on the device, with an exit at the cut.

    `cut`: any point of the model, "input" and "output" included. `crossing_bytes`: None counts what the model passes
    there, before any codec. Measured seconds are better, where there are some: `ExitSeconds` takes them as they are.
    """
    for name, rate in (("device", device_macs_per_second), ("edge", edge_macs_per_second)):
        if not 0 < rate < math.inf:
            raise ConfigError(f"{name}_macs_per_second={rate}: a finite number above 0")
    costs, exits = model.costs, model.exits
    at = SplitPoints(model.backbone, model.example, [*exits, *({cut} - {*exits, INPUT, OUTPUT})])
    behind = _exits_before(cut, at.names, exits)
    size = (at.crossing(cut).bytes if cut != OUTPUT else 0.0) if crossing_bytes is None else crossing_bytes
    rates = [device_macs_per_second if k < behind else edge_macs_per_second for k in range(len(costs.stages))]
    stages = [macs / rate for macs, rate in zip(costs.stages, rates, strict=True)]
    if cut not in (INPUT, OUTPUT, *exits):
        own = macs_of(lambda: at.head(cut, at.example), len(at.example)) - sum(costs.stages[:behind])
        stages[behind] = own / device_macs_per_second + (costs.stages[behind] - own) / edge_macs_per_second
    heads, predictors = (
        tuple(macs / rate for macs, rate in zip(given, rates)) for given in (costs.heads, costs.predictors)
    )
    return ExitSeconds(ExitCosts(tuple(stages), heads, predictors), behind, float(size), link_s)


def _exits_before(cut: str, names: tuple[str, ...], exits: tuple[str, ...]) -> int:
    """Returns the number of stages that the device computes whole: those whose exit is at the cut or before it."""
    if cut == OUTPUT:
        return len(exits) + 1
    return sum(names.index(exit) <= names.index(cut) for exit in exits)
