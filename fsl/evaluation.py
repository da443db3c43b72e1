"""Loss and accuracy of a model on a set of examples."""

from dataclasses import dataclass

import torch
from torch import nn

from fsl.data import Examples
from fsl.modes import evaluating
from fsl.objective import Objective

BATCH = 512  # rows; bounds the memory of an evaluation


@dataclass(frozen=True)
class Score:
    """The mean loss over rows, and the share of rows that are right (None where that has no meaning)."""

    loss: float
    accuracy: float | None


def evaluate(modules: list[nn.Module], examples: Examples, objective: Objective, accelerator: torch.device) -> Score:
    """Run segments behind each other over all examples, in evaluation mode; each module's mode is put back."""
    total, right = 0.0, 0
    scored = True
    with evaluating(*modules), torch.no_grad():
        for rows in torch.arange(len(examples)).split(BATCH):
            inputs, targets = examples.batch(rows)
            outputs, targets = inputs.to(accelerator), targets.to(accelerator)
            for module in modules:
                outputs = module(outputs)
            total += float(objective.loss(outputs, targets)) * len(rows)
            correct = objective.correct(outputs, targets)
            scored = correct is not None
            right += int(correct) if correct is not None else 0
    return Score(total / len(examples), right / len(examples) if scored else None)
