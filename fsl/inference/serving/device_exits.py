"""Early exits on a device that asks: rows that are sure enough leave there, and only the others are asked."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, WireError
from fsl.inference.exits import ExitModel, ExitResult, Thresholds
from fsl.inference.exits.exit_thresholds import Given
from fsl.inference.serving.point_gate import PointGate, contiguous
from fsl.inference.split_points import INPUT, OUTPUT, SplitPoints
from fsl.segments.tensor_trees import Values


@dataclass(frozen=True, kw_only=True)
class LeftRows:
    """The rows of a question that left on the device, with their outputs; `onward` (S,) are the numbers of the others.

    `exits` (B,): as in `ExitResult`, the number of exits where a row did not leave. `names`: the exits', and "output".
    """

    names: tuple[str, ...]
    exits: Tensor
    rows: Tensor
    outputs: Tensor
    onward: Tensor

    def joined(self, outputs: Tensor) -> Tensor:
        """Returns the outputs of all rows (B, ...), from those of the rows that went on (S, ...)."""
        if not len(self.rows):
            return outputs
        whole = self.outputs.new_empty((len(self.exits), *self.outputs.shape[1:]))
        whole[self.rows] = self.outputs
        whole[self.onward] = outputs.to(whole)
        return whole

    def taken(self) -> dict[str, int]:
        """Returns how many rows left by each exit."""
        counts = torch.bincount(self.exits, minlength=len(self.names)).tolist()
        return {name: count for name, count in zip(self.names, counts, strict=True) if count}


@checks_types(leave=("thresholds",))
@dataclass(frozen=True)
class DeviceExits:
    """The exits of a device's model and when rows leave by them, as `ExitModel.infer` takes `thresholds`.

    A question is divided at one of the exits, and the device asks that exit and those before it; the edge computes the
    whole rest, and asks no exit. At "input" none is asked, and at "output" each. ConfigError for thresholds that cannot
    be.
    """

    model: ExitModel
    thresholds: Given

    def __post_init__(self) -> None:
        self.model.infer_until(self.model.exits[0], self.model.example, self.chosen)  # refuses what cannot be

    @cached_property
    def chosen(self) -> Thresholds:
        """The thresholds of each exit."""
        return Thresholds.of(self.thresholds, self.model.exits)

    def check(self, points: SplitPoints) -> None:
        """Raise ConfigError where the exits are not those of the model that a device has at `points`."""
        if self.model.points.digest() != points.digest():
            raise ConfigError("exits: they are of another model than points; class or weights differ")
        never = Thresholds((torch.inf,) * len(self.model.exits))
        for point in self.model.exits:
            if point not in points.names:
                raise ConfigError(
                    f"exits: {point!r} is none of the points {', '.join(points.names)}; name it in points"
                )
            onward = self.model.infer_until(point, points.example, never).onward
            assert onward is not None
            _checked(onward.values, PointGate(points, point), len(points.example))

    def begin(self, point: str, inputs: Values, gate: PointGate | None) -> tuple[Values, LeftRows]:
        """Returns what goes on from a point, of the rows that have not left, and those that have.

        At "output", where no gate is, what goes on are outputs, of no row. ConfigError for a point without an exit.
        """
        names, count = (*self.model.exits, OUTPUT), len(inputs)
        if gate is None:
            result = self.model.infer(inputs, self.chosen)
            every = torch.arange(count, device=result.outputs.device)
            return result.outputs[:0], _left(names, every, result, every[:0])
        if point == INPUT:
            every = torch.arange(count)
            none = ExitResult(torch.empty(0), every[:0], torch.empty(0))
            return inputs, _left(names, every[:0], none, every)
        if point not in self.model.exits:
            raise ConfigError(
                f"point={point!r}: this device has exits, and is divided at one of {', '.join(self.model.exits)}, at "
                f"{INPUT!r} or at {OUTPUT!r}"
            )
        found = self.model.infer_until(point, inputs, self.chosen)
        if found.onward is None:
            return found.left.outputs[:0], _left(names, found.rows, found.left, found.rows[:0])
        values = _checked(contiguous(found.onward.values), gate, len(found.onward.rows))
        return values, _left(names, found.rows, found.left, found.onward.rows)


def _left(names: tuple[str, ...], rows: Tensor, result: ExitResult, onward: Tensor) -> LeftRows:
    exits = torch.full((len(rows) + len(onward),), len(names) - 1, device=rows.device)
    exits[rows] = result.exits
    return LeftRows(names=names, exits=exits, rows=rows, outputs=result.outputs, onward=onward)


def _checked(values: Values, gate: PointGate, rows: int) -> Values:
    try:
        return gate.check(values, rows)
    except WireError as error:
        raise ConfigError(f"exits: what goes on from {gate.point!r} is not what crosses there: {error}") from None
