"""Trains exit predictors on what the frozen exits do."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.exits.exit_data import GivenRows, training_rows
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_outputs import collect_outputs
from fsl.inference.exits.exit_predictor import ExitPredictor, balance_of, predictor_loss
from fsl.inference.exits.exit_thresholds import Given
from fsl.inference.exits.frozen_features import FrozenFeatures
from fsl.segments.descent import check_descent, descend, optimizer_of


@checks_types(leave=("data", "thresholds", "optimizer"))
def train_predictors(
    model: ExitModel,
    data: Any,
    thresholds: Given,
    *,
    width: int = 8,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-2,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    seed: int = 0,
) -> tuple[tuple[float, ...], ...]:
    """Train a predictor for each exit of a model whose backbone and heads stay as they are; returns each one's losses.

    Its label is 1 for a row that leaves there by these confidences (`thresholds`), among the rows that arrive there
    without predictors; the loss is binary cross-entropy, in which rows that leave count N0 / N1 times. The model has
    the predictors afterwards, and uses them where thresholds have an `eta` above 0.

    ConfigError for an exit where all rows leave, or none: there is nothing to predict.
    """
    if width < 1:  # before anything is computed
        raise ConfigError(f"width={width}: at least 1")
    check_descent(epochs, batch_size, learning_rate)
    examples = training_rows(data).examples
    found = collect_outputs(model, GivenRows(examples, labelled=False), batch_size=batch_size).replay(thresholds)
    features = FrozenFeatures(model, examples, batch_size)
    first = [given[0] for given in features.of(torch.arange(1)).heads]
    predictors, losses = [], []
    for k, name in enumerate(model.exits):
        arrived = found.arrived[k].nonzero().flatten()
        leaves = (found.exits[arrived] == k).to(model.place)
        if not 0 < int(leaves.sum()) < len(leaves):
            raise ConfigError(
                f"thresholds: of {len(leaves)} rows that arrive at the exit {name!r}, {int(leaves.sum())} leave, so "
                "that there is nothing to predict; give another confidence there"
            )
        with seeds.left_as_found(), seeds.DEFAULT_GENERATOR:
            seeds.reseed(seeds.derive(seed, "exit-predictor", segment=name))
            predictor = ExitPredictor(tuple(first[k].shape[1:]), width)
        predictor = predictor.to(model.place, first[k].dtype)
        weight = balance_of(leaves)

        def loss(rows: Tensor, k: int = k, arrived: Tensor = arrived, leaves: Tensor = leaves) -> Tensor:
            logits = predictor.logits(features.of(arrived[rows]).heads[k][0])  # noqa: B023 - called in this pass
            return predictor_loss(logits, leaves[rows], weight)  # noqa: B023

        made = optimizer_of(optimizer, predictor.parameters(), learning_rate)
        purpose = f"train-predictor-{name}"
        losses.append(tuple(descend(made, loss, model.place, len(arrived), epochs, batch_size, seed, purpose)))
        predictor.zero_grad(set_to_none=True)
        predictors.append(predictor.eval())
    model.put_predictors(predictors)
    return tuple(losses)
