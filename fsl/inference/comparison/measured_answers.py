"""What answers are worth, and what they take to send, for each way of dividing requests, on real examples."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.data import Examples
from fsl.errors import ConfigError
from fsl.inference.comparison.cut_way import CutWay
from fsl.inference.planning import SplitChoice
from fsl.inference.profiles import Encoding
from fsl.inference.profiles.this_machine import with_threads
from fsl.inference.split_points import INPUT, OUTPUT, SplitPoints
from fsl.objective import Objective
from fsl.round.evaluation import Score, Tally
from fsl.segments.calling import outputs_of
from fsl.segments.tensor_trees import TensorTree, Values, as_values, joined

_ROWS = 256  # that head and tail compute at once


@dataclass(frozen=True)
class MeasuredAnswer:
    """The score of answers that are made in one way, and the encoding of what crosses (None: as the model passes it).

    `weights`: the bytes of each tensor that the way adds to those on the device, by its identity.
    """

    score: Score
    encoding: Encoding | None = None
    weights: Mapping[int, int] = field(default_factory=dict)

    @property
    def quality(self) -> float:
        """Higher is better: accuracy, or minus the loss where the objective has no accuracy."""
        return -self.score.loss if self.score.accuracy is None else self.score.accuracy


@checks_types(leave=("examples", "objective"))
def measure_answers(
    points: SplitPoints,
    examples: Examples,
    objective: Objective,
    *,
    ways: Mapping[SplitChoice, CutWay],
    formats: Mapping[SplitChoice, Examples],
    rows: int = 1000,
    batch: int = 1,
    threads: int = 1,
) -> dict[SplitChoice, MeasuredAnswer]:
    """Score the first rows in each way: unsplit (by LOCAL), by a codec at a cut, and from the input in a format.

    A codec gets requests of `batch` rows, as a device sends them, since ranges and draws may be those of a request, and
    is timed with so many `threads` of torch; head and tail compute many at once. `formats` has the same examples as
    they are after writing and reading them.
    ConfigError for rows that are not there, and for choices that are no cut and no input.
    """
    if rows < 1 or batch < 1 or threads < 1:
        raise ConfigError(f"rows={rows}, batch={batch}, threads={threads}: there must be at least one")
    count = min(rows, len(examples))
    if not count:
        raise ConfigError("examples: there are none to score answers on")
    found = {SplitChoice(OUTPUT): MeasuredAnswer(_scored(points, examples, objective, count))}
    for choice, other in formats.items():
        if choice.point != INPUT or len(other) < count:
            raise ConfigError(f"formats: {choice.title}: give all the rows of the input, as a format leaves them")
        found[choice] = MeasuredAnswer(_scored(points, other, objective, count))
    for choice, way in ways.items():
        if choice.point in (INPUT, OUTPUT):
            raise ConfigError(f"ways: {choice.title}: a codec stands at a cut")
        found[choice] = _by_way(points, examples, objective, choice, way, count, batch, threads)
    return found


def _scored(points: SplitPoints, examples: Examples, objective: Objective, count: int) -> Score:
    tally = Tally(objective)
    with torch.no_grad():
        for rows in torch.arange(count).split(_ROWS):
            inputs, targets = examples.batch(rows)
            values = as_values(inputs)
            assert values is not None
            tally.add(outputs_of(points.model, values), targets)
    return tally.score()


def _by_way(
    points: SplitPoints,
    examples: Examples,
    objective: Objective,
    choice: SplitChoice,
    way: CutWay,
    count: int,
    batch: int,
    threads: int,
) -> MeasuredAnswer:
    tally, encodings, weights = Tally(objective), list[Encoding](), list[int]()
    for rows in torch.arange(count).split(max(1, _ROWS // batch) * batch):
        inputs, targets = examples.batch(rows)
        values = as_values(inputs)
        assert values is not None
        crossing = points.head(choice.point, values)
        with with_threads(threads):
            requests = [crossing[first : first + batch] for first in range(0, len(rows), batch)]
            try:
                crossed, encoding = way.crossed(requests, int(rows[0]) // batch)
            except ConfigError as error:
                raise ConfigError(f"{choice.title}: {error}") from None
        tally.add(_tails(points, choice.point, crossed), targets)
        encodings.append(encoding)
        weights.append(len(rows))
    return MeasuredAnswer(tally.score(), _mean(encodings, weights), way.weights)


def _tails(points: SplitPoints, point: str, crossed: list[Values]) -> Tensor:
    """Returns the outputs of all requests; one by one where each brings what its samples share."""
    if any(isinstance(values, TensorTree) and values.shared for values in crossed):
        return torch.cat([points.tail(point, values) for values in crossed])
    return points.tail(point, joined(crossed))


def _mean(encodings: list[Encoding], weights: list[int]) -> Encoding:
    """Returns means over parts of so many rows."""

    def of(values: list[float]) -> float:
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

    return Encoding(
        factor=0.0,
        fixed_bytes=of([one.fixed_bytes for one in encodings]),
        encode_seconds=of([one.encode_seconds for one in encodings]),
        decode_seconds=of([one.decode_seconds for one in encodings]),
    )
