"""What every exit gives for some data, collected once, and what would have happened to each row by other thresholds."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.exits.confidences import no_confidence
from fsl.inference.exits.exit_data import measured_rows
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_predictor import probabilities_of
from fsl.inference.exits.exit_thresholds import Given, Thresholds
from fsl.inference.exits.exit_walk import ExitCosts
from fsl.inference.exits.frozen_features import FrozenFeatures
from fsl.inference.exits.head_fitting import head_outputs
from fsl.objective import CrossEntropy, Objective
from fsl.segments.modes import evaluating


@dataclass(frozen=True)
class ExitOutputs:
    """Every output of some rows, on the CPU: exits first, the final one last.

    `outputs`: each (N, ...). `confidence` (exits, N), None where the exits have none. `scores` (exits, N): the
    predictors' probabilities, None without predictors. `quality` (exits + 1, N): 1 for a right answer and 0 for a wrong
    one, or of numbers minus the loss; None where the rows have no targets.
    """

    exits: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    confidence: Tensor | None
    scores: Tensor | None
    quality: Tensor | None
    bounded: bool

    def means(self) -> tuple[float, ...]:
        """Returns each exit's mean quality over all rows, the final one's last: accuracy, or minus the loss."""
        return tuple(self.known_quality().double().mean(1).tolist())

    def _confidence_at(self, k: int) -> Tensor:
        return no_confidence(self.outputs[k]) if self.confidence is None else self.confidence[k]

    def known_quality(self) -> Tensor:
        """Returns the quality (exits + 1, N); ConfigError where the rows have no targets."""
        if self.quality is None:
            raise ConfigError("outputs: their rows have no targets, so that nobody knows how good they are; give some")
        return self.quality

    def replay(self, thresholds: Given) -> "Replay":
        """Returns what inference by these thresholds does with each row."""
        found = Thresholds.of(thresholds, self.exits)
        if any(found.eta) and self.scores is None:
            raise ConfigError(f"eta={found.eta}: these outputs have no predictors' scores; train predictors first")
        count = len(self.outputs[0])
        here = torch.ones(count, dtype=torch.bool)
        exits = torch.full((count,), len(self.exits))
        arrived, scored, judged = [here], [], []
        for k, (beta, eta) in enumerate(zip(found.beta, found.eta, strict=True)):
            never = beta == torch.inf or (self.bounded and beta > 1)
            asked = here & (eta > 0) & (not never)
            sent = here & (not never)
            if eta > 0 and self.scores is not None:
                sent = sent & (self.scores[k] >= eta)
            leaving = sent & (True if never or beta == -torch.inf else self._confidence_at(k) >= beta)
            exits[leaving] = k
            here = here & ~leaving
            arrived.append(here)
            scored.append(asked)
            judged.append(sent)
        return Replay(exits, torch.stack(arrived), torch.stack(scored), torch.stack(judged))


@dataclass(frozen=True)
class Replay:
    """What becomes of N rows: `exits` (N,) as in `ExitResult`, and who was computed where.

    `arrived` (exits + 1, N): whose stage was computed; `scored` and `judged` (exits, N): whose predictor and head were.
    """

    exits: Tensor
    arrived: Tensor
    scored: Tensor
    judged: Tensor

    def cost(self, costs: ExitCosts) -> Tensor:
        """Returns what each row costs (N,), float64: multiply-adds, or seconds where `costs` are such."""
        costs.check_count(len(self.judged), bool(self.scored.any()))
        found = torch.tensor(costs.stages, dtype=torch.float64) @ self.arrived.double()
        found += torch.tensor(costs.heads, dtype=torch.float64) @ self.judged.double()
        if costs.predictors:
            found += torch.tensor(costs.predictors, dtype=torch.float64) @ self.scored.double()
        return found

    def quality(self, outputs: ExitOutputs) -> float:
        """Returns the mean quality of the outputs with which rows leave."""
        return float(outputs.known_quality().gather(0, self.exits[None]).double().mean())


@checks_types(leave=("data", "objective"))
def collect_outputs(model: ExitModel, data: Any, *, objective: Any = None, batch_size: int = 100) -> ExitOutputs:
    """Compute every exit for all rows of some data, as validation data that neither backbone nor heads were trained on.

    `data`: Examples or (inputs, targets); of inputs alone, also by name, there is no quality. `objective`: whose
    accuracy, or else whose loss of rows, is the quality. ConfigError for targets that do not fit the objective, that it
    ignores, or of whose rows it has no loss.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: at least 1")
    rows = measured_rows(data)
    examples = rows.examples.of_one_length()
    quality = _Quality(rows.fitted(model, objective, "given"), examples.targets) if rows.labelled else None
    features = FrozenFeatures(model, examples, batch_size, once=True)
    parts: list[list[Tensor]] = []
    names, shape = model.exits, model.outputs_shape
    with torch.no_grad(), evaluating(model):
        for some in torch.arange(len(examples)).split(batch_size):
            known = features.of(some)
            outputs = [
                head_outputs(head, given, shape, name)
                for head, given, name in zip(model.heads, known.heads, names, strict=True)
            ]
            leading = [given[0] for given in known.heads]
            scores = [probabilities_of(*one) for one in zip(model.predictors, leading, names, strict=False)]
            parts.append([one.cpu() for one in (*outputs, known.final, *scores)])
    whole = [torch.cat(some) for some in zip(*parts, strict=True)]
    made = len(model.exits) + 1
    outputs, scores = whole[:made], whole[made:]
    sure = None if model.sureness is no_confidence else torch.stack([model.sureness(one) for one in outputs[:-1]])
    told = torch.stack(scores) if scores else None
    found = None if quality is None else torch.stack([quality.of(one) for one in outputs])
    return ExitOutputs(model.exits, tuple(outputs), sure, told, found, model.bounded)


class _Quality:
    """How good outputs are, by row; ConfigError at once for targets and objectives that do not tell."""

    def __init__(self, objective: Objective, targets: Tensor) -> None:
        self._objective, self._targets = objective, targets
        self._classes = isinstance(objective, CrossEntropy) and targets.dim() <= 2 and objective.class_dim in (1, -1)
        ignored = objective.ignored if objective.ignores else None
        if ignored is not None and targets.dim() == 1 and bool((targets == ignored).any()):
            raise ConfigError(
                f"data: {int((targets == ignored).sum())} of {len(targets)} targets are {ignored}, which the objective "
                "ignores, so that nobody knows how good outputs are; leave these rows out"
            )

    def of(self, outputs: Tensor) -> Tensor:
        """Returns each row's quality (N,)."""
        if self._classes and outputs.dim() == 2:
            labels = self._targets.argmax(1) if self._targets.dim() == 2 else self._targets
            return (outputs.argmax(1) == labels).float()
        losses = self._objective.rows(outputs, self._targets)
        if losses is None:
            raise ConfigError(
                f"objective={type(self._objective).__name__}: it has no loss of single rows by which exits could be "
                "compared, as where targets are ignored or weighted; use one that has, as classification or mse"
            )
        return -losses.detach()
