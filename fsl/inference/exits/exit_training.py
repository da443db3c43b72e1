"""Trains early exits: with the whole model, with each stage in turn, or on a frozen backbone."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, one_of
from fsl.inference.exits.exit_courses import Course, TrainedPhase, train_heads, train_stage, train_together
from fsl.inference.exits.exit_data import training_rows
from fsl.inference.exits.exit_losses import Distillation
from fsl.inference.exits.exit_model import ExitModel
from fsl.segments.descent import as_found, check_descent

How = Literal["joint", "layer_wise", "classifier_wise", "frozen"]

_BY_LABELS = {
    "layer_wise": "trains the final exit last, so that others cannot learn from it",
    "classifier_wise": "trains heads by labels alone",
}


@checks_types(leave=("data", "objective", "optimizer"))
def train_exits(
    model: ExitModel,
    data: Any,
    *,
    how: How = "frozen",
    objective: Any = None,
    distillation: Distillation | None = None,
    weights: Sequence[float] | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    decay_at: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    seed: int = 0,
) -> tuple[TrainedPhase, ...]:
    """Train a model's exits; returns the phases, with each epoch's mean loss.

    `how`: "joint": all at once, by the weighted sum of all exits' losses, the final one's last among `weights` (each 1
    unless given). "layer_wise": each stage with its exit in turn, what comes before it frozen; the last stage with the
    model's own outputs. "classifier_wise": the heads alone, by labels; the backbone stays as it is to the bit, its
    BatchNorm in evaluation (names as in Scardapane et al. 2020, arXiv 2004.12814). "frozen": the same, where
    `distillation` has heads learn from the final exit, too.

    `data`: TaskData, Examples, or (inputs, targets); inputs alone, also by name, where heads on a frozen backbone learn
    by `Distillation(share=1)`. `objective`: as
    `fsl.simulate` takes it. `optimizer` makes one of parameters and `lr`; the rate is a tenth from epoch `decay_at` on.
    ConfigError where `distillation` or `weights` would not count.
    """
    one_of("how", how, get_args(How))
    if distillation is not None and how in _BY_LABELS:
        raise ConfigError(f"distillation: how={how!r} {_BY_LABELS[how]}; leave it out, or use how='frozen' or 'joint'")
    check_descent(epochs, batch_size, learning_rate)
    if weights is not None:
        _check_weights(list(weights), how, model)
    rows = training_rows(data)
    if not rows.labelled and (distillation is None or distillation.share < 1 or how == "joint"):
        raise ConfigError(
            "data: inputs alone have no labels; give (inputs, targets), or how='frozen' with Distillation(share=1)"
        )
    course = Course(
        model=model,
        examples=rows.examples,
        objective=rows.fitted(model, objective, "training"),
        distillation=distillation,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        decay_at=decay_at,
        optimizer=optimizer,
        seed=seed,
    )
    with as_found(model, *(stage.module for stage in model.stages)):
        if how in ("frozen", "classifier_wise"):
            return (train_heads(course),)
        if how == "joint":
            return (train_together(course, [1.0] * (len(model.exits) + 1) if weights is None else list(weights)),)
        phases = [train_stage(course, place) for place in range(len(model.stages))]
        return tuple(phase for phase in phases if phase is not None)


def _check_weights(weights: Sequence[float], how: How, model: ExitModel) -> None:
    if how != "joint" or len(weights) != len(model.exits) + 1:
        raise ConfigError(f"weights={weights}: only how='joint' has them, one for each exit and the final one")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ConfigError(f"weights={weights}: finite numbers of at least 0, and one above 0")
