"""What exits are trained for: labels, what the final exit says of a sample, or both."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.objective import BCE, CrossEntropy, Elementwise, NextToken, Objective
from fsl.objective.output_divergence import divergence


@checks_types()
@dataclass(frozen=True)
class Distillation:
    """An exit's loss is `share` of its distance from the final exit, and the rest that from the labels.

    Of classes: T^2 times the divergence from the final exit's probabilities at `temperature` T (Hinton et al. 2015,
    arXiv 1503.02531). Of numbers: the objective's own loss against the final exit's numbers. A share of 1 looks at no
    label.
    """

    share: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"share={self.share}, temperature={self.temperature}: a share above 0 and at most 1, and a temperature "
                "above 0"
            )


def distance_from(final: Tensor, outputs: Tensor, objective: Objective, temperature: float) -> Tensor:
    """Returns how far outputs are from the final exit's, which gets no gradient, as a mean over the batch."""
    final = final.detach()
    if isinstance(objective, CrossEntropy) and not objective.log_probabilities:
        return divergence(outputs, final, objective.class_dim, temperature)
    if isinstance(objective, BCE):
        return objective.loss(outputs, final if objective.probabilities else final.sigmoid())
    if isinstance(objective, Elementwise):
        return objective.loss(outputs, final)
    raise _unknown(objective)


def labels_of(final: Tensor, objective: Objective) -> Tensor:
    """Returns the labels that the final exit's outputs stand for: the likeliest class, yes or no, or the numbers.

    Of next tokens (B, T): what a place foretells is the label of the place behind it; the first one is nobody's.
    """
    if isinstance(objective, NextToken):
        foretold = final.argmax(-1)
        return torch.cat([foretold[:, :1], foretold[:, :-1]], dim=1)
    if isinstance(objective, CrossEntropy):
        return final.argmax(objective.class_dim)
    if isinstance(objective, BCE):
        return (final > (0.5 if objective.probabilities else 0.0)).to(final.dtype)
    if isinstance(objective, Elementwise):
        return final
    raise _unknown(objective)


def _unknown(objective: Objective) -> ConfigError:
    return ConfigError(
        f"objective={type(objective).__name__}: fsl does not know how outputs stand for labels there; use one of fsl's "
        "objectives, as classification or mse"
    )
