"""Exits that were saved for the compared model: what rows do by them, and what that takes."""

import copy
from dataclasses import dataclass

from fsl.simulations.comparing.compare_options import CompareOptions
from fsl.simulations.comparing.contender import Contender

from fsl.errors import ConfigError
from fsl.inference.comparison import ExitRequests, exit_stage_seconds, tensor_bytes
from fsl.inference.exits import ExitModel, ExitSeconds, collect_outputs, load_exits
from fsl.inference.exits.exit_outputs import Replay
from fsl.inference.exits.exit_walk import ExitCosts
from fsl.inference.split_points import OUTPUT


@dataclass(frozen=True)
class ComparedExits:
    """A model with exits, and what each row of the compared data does by its thresholds.

    `seconds`: of this machine, by stage, head and predictor. `quality`: the share of right answers, or minus the loss.
    """

    model: ExitModel
    replay: Replay
    quality: float
    seconds: ExitCosts
    device_speed: float
    edge_speed: float

    @property
    def points(self) -> tuple[str, ...]:
        """Where it is divided: at each exit."""
        return self.model.exits

    def requests(self, point: str) -> ExitRequests:
        """Returns what rows ask of device and edge, where the device ends with the exit at a point."""
        behind = self.model.exits.index(point) + 1
        at = ExitSeconds(
            ExitCosts(
                *(self._at(each, behind) for each in (self.seconds.stages, self.seconds.heads, self.seconds.predictors))
            ),
            crossing=behind,
            crossing_bytes=float(self.model.points.crossing(point).bytes),
        )
        return ExitRequests.of(self.replay, at, float(self.model.points.crossing(OUTPUT).bytes))

    def weights(self, point: str) -> dict[int, int]:
        """Returns the bytes of each tensor on the device: of the front, and of heads and predictors until the point."""
        behind = self.model.exits.index(point) + 1
        front, _ = self.model.points.parts(point)
        return tensor_bytes(front, *self.model.heads[:behind], *self.model.predictors[:behind])

    def _at(self, seconds: tuple[float, ...], behind: int) -> tuple[float, ...]:
        return tuple(each / (self.device_speed if k < behind else self.edge_speed) for k, each in enumerate(seconds))


def compared_exits(main: Contender, options: CompareOptions) -> ComparedExits | None:
    """Read the exits that options name; None where they name none. ConfigError for those of another model."""
    if options.exits is None:
        return None
    saved = load_exits(options.exits, backbone=copy.deepcopy(main.points.model))
    if saved.model.points.digest() != main.points.digest():
        raise ConfigError(f"exits={options.exits}: they were saved for another model than run={options.run} has")
    thresholds = saved.thresholds if options.threshold is None else options.threshold
    if thresholds is None:
        raise ConfigError("threshold must be given, as in threshold=0.9: the exits were saved without")
    outputs = collect_outputs(saved.model, main.examples, objective=main.run.objective)
    replay = outputs.replay(thresholds)
    return ComparedExits(
        model=saved.model,
        replay=replay,
        quality=replay.quality(outputs),
        seconds=exit_stage_seconds(saved.model, options.repetitions, threads=options.threads),
        device_speed=options.device_speed,
        edge_speed=options.edge_speed,
    )
