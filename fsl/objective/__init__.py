"""Pluggable objectives: the loss that training minimises, and the score of outputs."""

from fsl.objective.classes import CrossEntropy
from fsl.objective.given_loss import Loss, as_objective, takes_batch
from fsl.objective.objective_base import Objective
from fsl.objective.predictions import Predictions
from fsl.objective.tasks import (
    Classification,
    MultiLabel,
    NextToken,
    Regression,
    Segmentation,
    TokenClassification,
)
from fsl.objective.values import BCE, L1, MSE, Elementwise, Huber, LossFunction

__all__ = [
    "BCE",
    "L1",
    "MSE",
    "Classification",
    "CrossEntropy",
    "Elementwise",
    "Huber",
    "Loss",
    "LossFunction",
    "MultiLabel",
    "NextToken",
    "Objective",
    "Predictions",
    "Regression",
    "Segmentation",
    "TokenClassification",
    "as_objective",
    "takes_batch",
]
