"""Inference with early exits: rows that are sure enough leave, and only the others go on to the next stage."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsl.errors import ConfigError
from fsl.inference.exits.confidences import Confidence
from fsl.inference.exits.exit_predictor import probabilities_of
from fsl.inference.exits.exit_stages import ExitStage, fuses, inputs_of
from fsl.inference.exits.exit_thresholds import Thresholds
from fsl.inference.exits.head_fitting import head_outputs
from fsl.inference.exits.head_layers import Shape
from fsl.segments.calling import outputs_of
from fsl.segments.tensor_trees import Values, tensors_of


@dataclass(frozen=True)
class ExitResult:
    """What inference with early exits gave, by row of the batch.

    `outputs` (B, ...). `exits` (B,): the number of the exit by which a row left, in the order of a forward pass; the
    number of exits, where it went through the whole model. `macs` (B,), float64: the multiply-adds that it took.
    """

    outputs: Tensor
    exits: Tensor
    macs: Tensor


@dataclass(frozen=True)
class Onward:
    """The rows of a batch that have not left: their numbers (S,), the values that they go on with, their `macs` (S,).

    `begin`: the number of the stage that comes next. `digest`: of the model with its exits that they come from.
    """

    rows: Tensor
    values: Values
    macs: Tensor
    begin: int
    digest: str = ""


@dataclass(frozen=True)
class PartialResult:
    """What a device gave before its cut: `rows` (L,) that left, their results, and what goes on (None: nothing)."""

    rows: Tensor
    left: ExitResult
    onward: Onward | None


@dataclass(frozen=True)
class ExitCosts:
    """What a sample costs, in multiply-adds or seconds: stages (one more than exits), heads, and predictors."""

    stages: tuple[float, ...]
    heads: tuple[float, ...]
    predictors: tuple[float, ...]

    def check_count(self, exits: int, scored: bool) -> None:
        """Raise ConfigError unless these are the costs of so many exits, with predictors where rows were `scored`."""
        predictors = exits if scored else 0
        if (len(self.stages), len(self.heads)) != (exits + 1, exits) or len(self.predictors) < predictors:
            raise ConfigError(
                f"costs: {len(self.stages)} stages, {len(self.heads)} heads and {len(self.predictors)} predictors; "
                f"there are {exits + 1}, {exits} and {predictors}: give those of the same model, as model.costs"
            )


@dataclass(frozen=True, kw_only=True)
class ExitPath:
    """All that a batch passes through: stages, and behind each but the last one an exit."""

    stages: Sequence[ExitStage]
    heads: Sequence[nn.Module]
    predictors: Sequence[nn.Module]
    costs: ExitCosts
    outputs: Shape  # of the model and of each head, without the batch
    confidence: Confidence
    bounded: bool  # whether no confidence is above 1


@torch.no_grad()
def walk(path: ExitPath, start: Onward, thresholds: Thresholds, end: int | None = None) -> PartialResult:
    """Compute stages from `start` on, through the exit behind stage `end`, or (None) to the model's end.

    Rows that leave are taken out of the batch, so that no later stage computes them.
    """
    rows, values, spent = start.rows, start.values, start.macs
    gone: list[tuple[Tensor, Tensor, int, Tensor]] = []  # rows, outputs, exit, multiply-adds
    last = len(path.stages) - 1
    behind = last + 1 if end is None else end + 1
    for k in range(start.begin, behind):
        if not len(rows):
            break
        spent = spent + path.costs.stages[k]
        if k == last:
            gone.append((rows, outputs_of(path.stages[k].module, values), k, spent))
            rows = rows[:0]
            break
        values = path.stages[k].run(values)
        leaving, outputs, paid = _leaving(path, k, values, thresholds)
        spent = spent + paid
        if not len(leaving):
            continue
        gone.append((rows[leaving], outputs, k, spent[leaving]))
        stays = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        stays[leaving] = False
        onward = stays.nonzero().flatten()
        rows, spent = rows[onward], spent[onward]
        values = values[onward] if len(onward) else values
    left = torch.cat([one for one, _, _, _ in gone]) if gone else rows[:0]
    order = left.argsort()
    exits = [torch.full((len(one),), k, device=one.device) for one, _, k, _ in gone]
    result = ExitResult(
        torch.cat([outputs for _, outputs, _, _ in gone])[order] if gone else torch.empty(0),
        torch.cat(exits)[order] if gone else rows[:0],
        torch.cat([macs for _, _, _, macs in gone])[order] if gone else spent[:0],
    )
    return PartialResult(left[order], result, Onward(rows, values, spent, behind) if len(rows) else None)


def start_of(values: Values) -> Onward:
    """Returns a whole batch before its first stage."""
    rows = torch.arange(len(values), device=tensors_of(values)[0].device)
    return Onward(rows, values, torch.zeros(len(rows), dtype=torch.float64, device=rows.device), 0)


def _leaving(path: ExitPath, k: int, values: Values, thresholds: Thresholds) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the places of rows that leave at exit `k`, their outputs, and what the exit cost each row."""
    count, device = len(values), tensors_of(values)[0].device
    paid = torch.zeros(count, dtype=torch.float64, device=device)
    asked, beta, eta = torch.arange(count, device=device), thresholds.beta[k], thresholds.eta[k]
    if beta == torch.inf or (path.bounded and beta > 1):
        return asked[:0], torch.empty(0), paid
    head = path.heads[k]
    given = inputs_of(values, fuses(head))
    if eta > 0:
        scores = probabilities_of(path.predictors[k], inputs_of(values, False)[0], path.stages[k].name)
        paid += path.costs.predictors[k]
        asked = (scores >= eta).nonzero().flatten()
        given = tuple(tensor[asked] for tensor in given)
    if not len(asked):
        return asked, torch.empty(0), paid
    outputs = head_outputs(head, given, path.outputs, path.stages[k].name)
    paid[asked] += path.costs.heads[k]
    if beta == -torch.inf:
        return asked, outputs, paid
    sure = (path.confidence(outputs) >= beta).nonzero().flatten()
    return asked[sure], outputs[sure], paid
