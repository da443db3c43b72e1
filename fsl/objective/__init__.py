"""Pluggable objectives: the loss that training minimises, and the score of outputs."""

from fsl.objective.classes import CrossEntropy
from fsl.objective.given_loss import Loss, as_objective, takes_batch
from fsl.objective.objective_base import Objective
from fsl.objective.values import BCE, L1, MSE, Elementwise, Huber, LossFunction

__all__ = [
    "BCE",
    "L1",
    "MSE",
    "CrossEntropy",
    "Elementwise",
    "Huber",
    "Loss",
    "LossFunction",
    "Objective",
    "as_objective",
    "takes_batch",
]
